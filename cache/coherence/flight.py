"""
What a read-through is about: the thing that is read or loaded, how, and a load under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from cache.coherence.entries import Changed, Held, Lease, Reading

Loader = Callable[[], Awaitable[Any]]


class Slot(Protocol):
    """One thing that can be read, loaded and stored. Every method may raise Away."""

    @property
    def name(self) -> str:
        """What calls that may share an answer have in common."""
        ...

    @property
    def entry(self) -> str:
        """What a lease is for; who waits for it is woken by this name."""
        ...

    def note(self, event: str, value: Any = None) -> None:
        """Count a "hit", "miss" or "load"."""
        ...

    def learn(self, value: Any) -> None:
        """Remember the class of a loaded value, so that stored ones of it can be read."""
        ...

    def read(self) -> Awaitable[Reading]: ...

    async def lease(self, seen: Reading) -> Lease | Held | Changed: ...

    async def renew(self, lease: Lease) -> bool: ...

    async def store(self, lease: Lease, value: Any, load_s: float) -> int:
        """2 stored while others wait, 1 stored, 0 refused, -1 not kept (too large)."""
        ...

    async def release(self, lease: Lease) -> bool: ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How one call wants its value. Times are seconds."""

    stale_if_error_s: float = 0.0
    soft_timeout_s: float | None = None
    hard_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    value: Any
    confirmed: bool


@dataclass(slots=True, eq=False)
class Flight:
    """One load in this process, and those who wait for it."""

    name: Hashable
    task: asyncio.Task[Loaded]
    waiters: int = 0
    loading: bool = False
    detached: bool = False  # goes on without waiters


def usable(reading: Reading, stale_if_error_s: float) -> bool:
    """Whether an expired value may still stand in for a loader that fails."""
    head = reading.head
    if head is None or stale_if_error_s <= 0:
        return False
    return reading.now_ms < head.fresh_until_ms + stale_if_error_s * 1000
