"""Defines slots, options of a load, and flights, on which a read-through works."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from cache.coherence.results import Changed, Held, Intended, Lease, Reading
from cache.errors import LoaderTimeout

Loader = Callable[[], Awaitable[Any]]


class Slot(Protocol):
    """A value or window that can be read, loaded and stored. Every method may raise Away."""

    @property
    def name(self) -> str:
        """Calls with the same name may share one answer."""

    @property
    def entry(self) -> str:
        """Calls with the same entry compete for one lease. Waiters are woken by this name."""

    def note(self, event: str, value: Any = None) -> None:
        """Count a "hit", "miss" or "load"."""

    def wait(self) -> None:
        """Called when the value is loaded elsewhere: by another flight, or by another process."""

    def learn(self, value: Any) -> None:
        """Remember the class of a loaded value, so that stored values of it can be read."""

    def copies(self, value: Any) -> Callable[[], Any]:
        """Return a function that gives each caller of a flight its own copy."""

    def read(self) -> Awaitable[Reading]: ...

    async def lease(self, seen: Reading) -> Lease | Held | Changed | Intended: ...

    async def prepare(self, lease: Lease) -> None:
        """Do in advance, while the loader runs, what `store` would have to do first."""

    async def store(self, lease: Lease, value: Any, load_s: float) -> int:
        """Return 2: stored while others wait, 1: stored, 0: refused, -1: not kept (too large)."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How one call loads its value. Times are seconds."""

    stale_if_error_s: float = 0.0
    soft_timeout_s: float | None = None
    hard_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """An answer; `make` copies it for each caller. If confirmed, nothing was invalidated meanwhile."""

    make: Callable[[], Any]
    confirmed: bool


@dataclass(slots=True, eq=False)
class Flight:
    """A running load of this process, with the number of callers that wait for it."""

    slot: Slot
    loader: Loader
    call: LoadOptions
    reading: Reading | None  # before the load; None while the server is away
    detached: bool = False  # continues even without waiters
    loading: bool = False
    waiters: int = 0
    task: asyncio.Task[Loaded] = field(init=False)


async def run_loader(loader: Loader, limit_s: float | None) -> Any:
    """Return or raise what the loader does. Raises LoaderTimeout if it was canceled at the limit."""
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await loader()
    except TimeoutError:
        if limit.expired():
            raise LoaderTimeout(
                f"the loader took longer than {limit_s} s and was canceled; raise "
                "LETTA_CACHE_LOADER_TIMEOUT_S or loader_timeout_s"
            ) from None
        raise
