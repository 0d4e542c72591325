"""Keeps helper tasks running: one that dies is logged and started again, never silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from cache.logs import get_logger

log = get_logger(__name__)

# Time until a helper that died starts again.
_PAUSE_S = 1.0


async def keep_running(
    name: str, helper: Callable[[], Awaitable[object]], *, pause_s: float = _PAUSE_S
) -> None:
    """Run a helper until it returns or this task is canceled."""
    while True:
        if await run_once(name, helper()):
            return
        await asyncio.sleep(pause_s)


async def run_once(name: str, helper: Awaitable[object]) -> bool:
    """Await a helper that something else starts again; return whether it did not die."""
    try:
        await helper
    except BaseException as exc:
        if _ends_this_task(exc):
            raise
        with contextlib.suppress(Exception):
            log.exception("helper.died", helper=name, error=type(exc).__name__)
        return False
    return True


def _ends_this_task(exc: BaseException) -> bool:
    """Whether the task itself is to end, in contrast to a helper that met a canceled future."""
    if isinstance(exc, GeneratorExit):
        return True
    task = asyncio.current_task()
    return isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling() > 0
