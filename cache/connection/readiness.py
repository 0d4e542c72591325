"""Waits for a server at the start, and tells a server that refuses from one that is away."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.backoff import ExponentialWithJitterBackoff

from cache.connection.pool import OUTAGE
from cache.connection.refusals import reason_of, refusal_of
from cache.connection.urls import redacted
from cache.errors import RedisRefused, RedisUnavailable
from cache.logs import get_logger

log = get_logger(__name__)

_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.1, 5.0
# Of one attempt, whatever a client's own timeouts and retries add up to.
ATTEMPT_S = 3.0


async def wait_until_ready(client: Any, url: str, *, deadline_s: float | None) -> None:
    """
    Wait until the server answers PING. Tries again after 0.1 to 5 s, with jitter.

    Logs the outage once and its end once. With `deadline_s` None, waits forever.

    Raises:
        RedisRefused: the server refuses for a reason that waiting does not end.
        RedisUnavailable: the server did not answer within the deadline.
    """
    backoff = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S)
    loop = asyncio.get_running_loop()
    start, failures = loop.time(), 0
    while True:
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await client.ping()
        except OUTAGE as exc:
            failures += 1
            refuse_for_good(exc, url)
            reason = reason_of(exc, url)
            if deadline_s is not None and loop.time() - start >= deadline_s:
                raise RedisUnavailable(redacted(url), reason) from None
            if failures == 1:
                log.warning("redis.unreachable", url=redacted(url), error=reason, retrying=True)
            await asyncio.sleep(backoff.compute(failures))
        else:
            if failures:
                log.info("redis.reached", url=redacted(url), after_s=round(loop.time() - start, 1))
            return


def refuse_for_good(exc: BaseException, url: str) -> None:
    """
    Return if waiting may help.

    Raises:
        RedisRefused: waiting does not help. The message names the remedy.
    """
    refusal = refusal_of(exc)
    if refusal is not None and refusal.lasting:
        raise RedisRefused(redacted(url), str(refusal)) from None
