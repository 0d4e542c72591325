"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_ASK_AGAIN_S = 0.1
_GIVE_UP_AFTER = 50


async def end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """
    Cancel tasks and wait for them, up to 5 s.

    `asyncio.wait_for` of Python 3.11, which redis-py sends with, loses a cancellation that
    arrives together with its result; so it is repeated.
    """
    left = [task for task in tasks if not task.done()]
    for _ in range(_GIVE_UP_AFTER):
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_ASK_AGAIN_S)
        left = [task for task in left if not task.done()]
