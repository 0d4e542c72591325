"""Waits at the start for a server that answers and passes the checks, and reads its clock."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cache.connection.readiness import wait_until_ready
from cache.connection.siblings import url_of
from cache.connection.tasks import end
from cache.errors import RedisRefused
from worker.engine.preflight import check_server

# Between two checks of a server that goes away in each.
_CHECK_AGAIN_S = 0.1


async def arrive(
    client: Any, queue: str, *, allow_eviction: bool, asked_to_end: asyncio.Event
) -> float | None:
    """
    Wait for the server without a limit. Return how far its clock is ahead of the loop's, seconds.

    None when `asked_to_end` was set meanwhile.

    Raises:
        RedisRefused, UnsafeServer: as `check_server`; waiting does not help.
    """
    while await _answers(client, asked_to_end):
        try:
            await check_server(client, queue, allow_eviction=allow_eviction)
            seconds, micros = await client.time()
        except RedisRefused:
            raise  # it is a ConnectionError, too
        except (RedisConnectionError, RedisTimeoutError, OSError):
            await asyncio.sleep(_CHECK_AGAIN_S)
        else:
            return float(seconds + micros / 1e6 - asyncio.get_running_loop().time())
    return None


async def _answers(client: Any, asked_to_end: asyncio.Event) -> bool:
    """Wait until the server answers; False when asked to end meanwhile."""
    ready = asyncio.create_task(wait_until_ready(client, url_of(client), deadline_s=None))
    asked = asyncio.create_task(asked_to_end.wait())
    try:
        await asyncio.wait({ready, asked}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
        return ready.done()
    finally:
        await end(ready, asked, limit_s=float("inf"))
