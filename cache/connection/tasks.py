"""Keeps and shares background tasks, waits for several calls, and cancels tasks until they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

from cache.connection.protocol import Away

T = TypeVar("T")
_ASK_AGAIN_S = 0.1


def keep(running: set[asyncio.Task[T]], work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a task, which is in `running` until it ends: the loop itself keeps tasks weakly."""
    task = asyncio.ensure_future(work)
    running.add(task)
    task.add_done_callback(running.discard)
    return task


async def all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Every result, or the first error after all calls have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]


async def joined(task: asyncio.Future[T]) -> T:
    """
    Wait for a task that other callers wait for too. Canceling this call does not cancel the task.

    Raises:
        Away: the task was canceled, by a close. This call was not, so it must not end as if it were.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        caller = asyncio.current_task()
        if task.cancelled() and caller is not None and not caller.cancelling():
            raise Away("closed while it connected") from None
        raise


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
