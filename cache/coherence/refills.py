"""
Reloads recently read values in the background when this process has invalidated them.

Otherwise a writer's own next read would always miss. A read asks for the refill of its
value. Useless refills are bounded:

- A value is refilled a few times after each read, then not until it is read again.
- Few refills run at once, so most of a process's database connections stay with requests.
  A request never waits in their queue: it loads, or joins a refill that already runs.
- Refills are flights like all others: one process loads, and a stale fill is refused.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Protocol

from cache.coherence.flight import Loader, LoadOptions, Slot
from cache.coherence.readthrough import ReadThrough
from cache.connection.tasks import end, keep
from cache.logs import get_logger
from cache.stats import Counters

log = get_logger(__name__)

_AT_ONCE = 2
# Most refills of a value since its last read. A step of an agent writes it more than once.
_PER_READ = 3
# Most values that can be refilled; the least recently read is forgotten. The queue is no longer.
_MOST_KNOWN = 1000


class RefillSlot(Slot, Protocol):
    """A slot that can be used again."""

    key: str

    def again(self) -> Slot:
        """The same slot for another load, which counts neither as a hit nor as a miss."""


@dataclass(slots=True, eq=False)
class _Known:
    slot: RefillSlot
    loader: Loader
    call: LoadOptions
    wanted: Callable[[], bool] | None
    unread: int = 0  # refills since the last read

    def is_wanted(self) -> bool:
        return self.unread < _PER_READ and (self.wanted is None or self.wanted())


class Refills:
    """The values to refill, and the tasks that do it."""

    def __init__(self, flights: ReadThrough, counters: Counters) -> None:
        self._flights = flights
        self._counters = counters
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._names: dict[str, set[str]] = {}  # by the key of the entry
        self._queue: dict[str, None] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def running(self) -> int:
        """Number of refills that run now."""
        return len(self._running)

    def remember(
        self,
        slot: RefillSlot,
        loader: Loader,
        call: LoadOptions,
        wanted: Callable[[], bool] | None = None,
    ) -> None:
        """
        Note that a value was read. `loader` must work without its caller: later, in another task.
        `wanted` is asked after each invalidation whether to refill the value now.
        """
        self._known[slot.name] = _Known(slot, loader, call, wanted)
        self._known.move_to_end(slot.name)
        self._names.setdefault(slot.key, set()).add(slot.name)
        if len(self._known) > _MOST_KNOWN:
            name, forgotten = self._known.popitem(last=False)
            names = self._names[forgotten.slot.key]
            names.discard(name)
            if not names:
                del self._names[forgotten.slot.key]

    def invalidated(self, key: str) -> None:
        """Queue refills of an entry that this process has invalidated."""
        for name in self._names.get(key, ()):
            if not self._closed and self._known[name].is_wanted():
                self._queue[name] = None
        if self._queue and len(self._running) < _AT_ONCE:
            # In its own context, not in that of the request that wrote.
            Context().run(keep, self._running, self._run())

    async def _run(self) -> None:
        while self._queue:
            name = next(iter(self._queue))
            del self._queue[name]
            known = self._known.get(name)
            if known is None:
                continue
            known.unread += 1
            self._counters.refills += 1
            try:
                await self._flights.get_or_load(known.slot.again(), known.loader, known.call)
            except Exception as exc:  # noqa: BLE001  (whatever the loader raises; readers get it)
                log.debug("cache.refill_failed", error=type(exc).__name__)

    async def close(self) -> None:
        self._closed = True
        self._queue.clear()
        await end(*self._running)
