"""Defines what a read-through works on: a slot, the options of a load, and a flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from cache.coherence.results import Changed, Held, Intended, Lease, Reading

Loader = Callable[[], Awaitable[Any]]


class Slot(Protocol):
    """A value or window that can be read, loaded and stored. Every method may raise Away."""

    @property
    def name(self) -> str:
        """The same for calls that may share one answer."""
        ...

    @property
    def entry(self) -> str:
        """The same for calls that compete for one lease. Waiters are woken by this name."""
        ...

    def note(self, event: str, value: Any = None) -> None:
        """Count a "hit", "miss" or "load"."""
        ...

    def wait(self) -> None:
        """The value is loaded elsewhere: by another flight, or by another process."""
        ...

    def learn(self, value: Any) -> None:
        """Remember the class of a loaded value, so that stored values of it can be read."""
        ...

    def copies(self, value: Any) -> Callable[[], Any]:
        """Gives each caller of a flight a value of its own."""
        ...

    def read(self) -> Awaitable[Reading]: ...

    async def lease(self, seen: Reading) -> Lease | Held | Changed | Intended: ...

    async def prepare(self, lease: Lease) -> None:
        """Do, while the loader runs, what the store would otherwise have to do first."""
        ...

    async def renew(self, lease: Lease) -> bool: ...

    async def store(self, lease: Lease, value: Any, load_s: float) -> int:
        """2 stored while others wait, 1 stored, 0 refused, -1 not kept (too large)."""
        ...

    async def release(self, lease: Lease) -> bool: ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How one call loads its value. Times are seconds."""

    stale_if_error_s: float = 0.0
    soft_timeout_s: float | None = None
    hard_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """An answer, made anew for each caller. If confirmed, nothing was invalidated meanwhile."""

    make: Callable[[], Any]
    confirmed: bool


@dataclass(slots=True, eq=False)
class Flight:
    """A load that runs in this process, with the number of callers that wait for it."""

    name: Hashable
    task: asyncio.Task[Loaded]
    waiters: int = 0
    loading: bool = False
    detached: bool = False  # continues even without waiters


def usable(reading: Reading, stale_if_error_s: float) -> bool:
    """Whether an expired value may still be served when the loader fails."""
    head = reading.head
    if head is None or stale_if_error_s <= 0:
        return False
    return reading.now_ms < head.fresh_until_ms + stale_if_error_s * 1000
