"""
Sends what jobs ask about attempts to Redis, many in one script call.

What a worker's jobs request in one tick of the event loop is sent in one script
call; requests that arrive during the call form the next one. A call costs the
same for one delivery as for sixty. While the server is unavailable, the jobs
wait for it until their own timeouts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis import exceptions
from redis.backoff import ExponentialWithJitterBackoff

from cache.connection.owner import rest
from cache.connection.refusals import explain, is_denied
from cache.connection.scripts import load
from cache.encoding import codec
from cache.logs import get_logger
from worker.errors import Undecodable
from worker.keys import MAX_WEBHOOK_ATTEMPTS, QueueKeys
from worker.queue.encoder import now_ms
from worker.queue.staging import MOST_INLINE
from worker.queue.store import job_body
from worker.webhooks.limits import EndpointLimits

log = get_logger(__name__)

_ATTEMPT = load(__package__, "attempt_deliveries", "..queue")
# The job that reports a delivery's end to the function given as `on_end`.
REPORT_WEBHOOK = "report_webhook"
_MARK = "<delivery>"
# Not every RedisError: a script error would repeat.
_AWAY = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    OSError,
)
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.05, 1.0
# Keeps a script call short; the rest is sent in the next call.
_MOST = 64
_TELL_EVERY_S = 30.0


class ScriptFailed(Undecodable):
    """One delivery's step failed in the server, and only this one's: its keys are not what they were."""


@dataclass(frozen=True, slots=True)
class Terms:
    limits: EndpointLimits
    max_attempts: int
    retention_s: float


@dataclass(slots=True, eq=False)
class _Asked:
    terms: Terms
    is_end: bool
    row: bytes  # encoded early, so that an encoding error fails only its own caller
    answer: asyncio.Future[list[Any]]


class AttemptCalls:
    """The requests of all jobs of a worker, through one client, on one event loop."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self.client = client
        self.keys = keys
        self.is_refused = False  # a command is denied: the last call is sent again
        self._asked: deque[_Asked] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._tell_at = float("-inf")

    async def ask(self, terms: Terms, is_end: bool, row: list[Any]) -> list[Any]:
        """
        Begin an attempt (`row` as in _begin_attempt.lua) or end one (_record_attempt.lua).

        Raises:
            ScriptFailed: the server cannot do this one step.
        """
        loop = asyncio.get_running_loop()
        asked = _Asked(terms, is_end, codec.encode_row(row), loop.create_future())
        self._asked.append(asked)
        if self._sending is None:
            # The task starts after all ready jobs, so that their requests are in the same call.
            self._sending = loop.create_task(self._send(), name="webhook-attempts")
        answer = await asked.answer
        if answer[0] == b"error":
            raise ScriptFailed(answer[1].decode(errors="replace"))
        return answer

    async def _send(self) -> None:
        batch: list[_Asked] = []
        try:
            while self._asked:
                batch = self._next()
                try:
                    await self._send_batch(batch)
                except Exception as exc:  # noqa: BLE001  (raised in each waiting job)
                    for asked in batch:
                        if not asked.answer.done():
                            asked.answer.set_exception(exc)
        except asyncio.CancelledError:
            for asked in (*batch, *self._asked):
                asked.answer.cancel()
            self._asked.clear()
            raise
        finally:
            self._sending = None

    def _next(self) -> list[_Asked]:
        waiting = self._asked
        batch = [waiting.popleft()]
        terms, size = batch[0].terms, len(batch[0].row)
        while waiting and len(batch) < _MOST:
            asked = waiting[0]
            size += len(asked.row)
            if size > MOST_INLINE or (asked.terms is not terms and asked.terms != terms):
                break
            batch.append(waiting.popleft())
        return batch

    async def _send_batch(self, batch: Sequence[_Asked]) -> None:
        backoff, failures = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S), 0
        while batch:
            try:
                await self._send_once(batch)
            except (exceptions.RedisError, OSError) as exc:
                # Giving up would lose the outcomes, and the attempts would be repeated. Both
                # kinds are safe to send again; each waiting job has its own timeout.
                if not isinstance(exc, _AWAY):
                    if not is_denied(str(exc)):
                        raise
                    self._tell(exc)
                failures += 1
                await rest(self.client, backoff.compute(failures))
                batch = [asked for asked in batch if not asked.answer.done()]
            else:
                self.is_refused = False
                return

    def _tell(self, denied: Exception) -> None:
        self.is_refused = True
        now = asyncio.get_running_loop().time()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            log.warning("webhook.refused", error=explain(denied), retrying=True)

    async def _send_once(self, batch: Sequence[_Asked]) -> None:
        ends = [asked for asked in batch if asked.is_end]
        begins = [asked for asked in batch if not asked.is_end]
        args = [
            self.keys.prefix,
            _packed(batch[0].terms),
            codec.array([asked.row for asked in ends]),
            codec.array([asked.row for asked in begins]),
            *report(),
        ]
        replies = await _ATTEMPT.run(self.client, [self.keys.webhook_open], args)
        if [len(answers) for answers in replies] != [len(ends), len(begins)]:
            raise RuntimeError("the script answered for other attempts than were asked for")
        denied = ""
        for group, answers in zip((ends, begins), replies, strict=True):
            for asked, answer in zip(group, answers, strict=True):
                if answer[0] == b"error" and is_denied(answer[1].decode(errors="replace")):
                    denied = answer[1].decode(errors="replace")
                elif not asked.answer.done():
                    asked.answer.set_result(answer)
        if denied:
            raise exceptions.NoPermissionError(denied)

    async def body(self, delivery_id: str) -> bytes | None:
        """A body that is too large for the script's reply. Waits for a server that is away, as `begin`."""
        backoff, failures = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S), 0
        while True:
            try:
                body: bytes | None = await self.client.hget(self.keys.webhook(delivery_id), "body")
            except _AWAY:
                failures += 1
                await rest(self.client, backoff.compute(failures))
            else:
                return body


@lru_cache(maxsize=16)
def _packed(terms: Terms) -> bytes:
    limits = terms.limits
    return codec.encode(
        {
            "concurrency": limits.concurrency,
            "host_concurrency": limits.host_concurrency,
            "rate": limits.rate_per_s,
            "slot": int(limits.slot_s * 1000),
            "breaker_failures": limits.breaker_failures,
            "open": int(limits.open_s * 1000),
            "open_max": int(limits.open_max_s * 1000),
            "disable_after": int(limits.disable_after_s * 1000),
            "retention": int(terms.retention_s * 1000),
            "max_attempts": terms.max_attempts,
            "most_records": MAX_WEBHOOK_ATTEMPTS,
        }
    )


def report() -> tuple[bytes, bytes]:
    """The body of the job that reports an end, split where the delivery's id is inserted."""
    body = job_body(REPORT_WEBHOOK, [_MARK], {}, now_ms=now_ms())
    head, _, tail = body.partition(codec.encode(_MARK))
    return head, tail
