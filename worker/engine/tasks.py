"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

# redis-py can take a cancellation for the failure of a connect, and go on.
_ASK_AGAIN_S = 0.2


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks until they are done, whatever swallows a cancellation; their errors are dropped."""
    pending = {task for task in tasks if task is not None}
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=_ASK_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()
