"""Waits for events with a deadline, never for a duration."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_LOOK_EVERY_S = 0.01


async def eventually(look: Callable[[], Awaitable[T | None]], *, deadline_s: float = 30.0) -> T:
    """Return the first true result of `look`. AssertionError with the last one at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        found = await look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s; the last look gave {found!r}")
        await asyncio.sleep(_LOOK_EVERY_S)


def eventually_sync(look: Callable[[], T], *, deadline_s: float = 30.0) -> T:
    """Like `eventually`, without an event loop."""
    end = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s; the last look gave {found!r}")
        time.sleep(_LOOK_EVERY_S)
