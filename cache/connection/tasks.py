"""Cancels background tasks until they end."""

from __future__ import annotations

import asyncio
from typing import Any

_ASK_AGAIN_S = 0.1


async def end(*tasks: asyncio.Future[Any] | None, limit_s: float = 5.0) -> None:
    """
    Cancel tasks until they are done, for at most `limit_s`. Their errors are dropped.

    Cancels repeatedly, because one cancellation may be lost: by `asyncio.wait_for` of Python
    3.11 (which redis-py uses) when it arrives together with the result, and by redis-py, which
    can take it for a failed connect.
    """
    pending = {task for task in tasks if task is not None}
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + limit_s
    while pending and loop.time() < give_up_at:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=_ASK_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()
