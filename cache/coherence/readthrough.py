"""
Implements get_or_load: a single flight in the process, a lease across processes.

On a miss a caller joins the value's flight, or starts it. A flight gets the lease,
or waits for the process that holds it; then it loads and stores (loads.py).

Two rules make joining safe (docs/caching.md draws the races):
- A flight accepts joiners only until its answer is under way: it leaves the table
  before a fill or a second read is sent. Otherwise a caller that came after an
  invalidation could get an answer from before it.
- A load that was refused or not confirmed answers only the callers that came before
  its loader started. Later joiners start over.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Hashable
from typing import Any

from cache.coherence.backplane import Backplane
from cache.coherence.flight import Flight, Loaded, Loader, LoadOptions, Slot, usable
from cache.coherence.loads import LeasedLoads
from cache.coherence.results import Lease, Reading
from cache.connection.protocol import Away
from cache.connection.tasks import end
from cache.logs import get_logger
from cache.options import CacheOptions
from cache.stats import Counters

log = get_logger(__name__)

# A caller that starts over runs a loader each time. After this many, it loads for itself alone.
_ATTEMPTS = 4


class ReadThrough:
    """The flights of this process."""

    def __init__(self, backplane: Backplane, options: CacheOptions, counters: Counters) -> None:
        self._loads = LeasedLoads(backplane, options, counters)
        self._options = options
        self._counters = counters
        self._flights: dict[Hashable, Flight] = {}
        self._running: set[asyncio.Task[Any]] = set()

    async def get_or_load(
        self, slot: Slot, loader: Loader, call: LoadOptions, first: Reading | None = None
    ) -> Any:
        """
        The stored value, or else the loader's. Raises only what the loader raises.

        Args:
            first: what the caller has read already.
        """
        for _ in range(_ATTEMPTS):
            reading, first = first or await self._read(slot), None
            if reading is not None:
                slot.note("hit" if reading.fresh else "miss", reading.value)
                if reading.fresh:
                    self._refresh_early(slot, loader, reading, call)
                    return reading.value
                if reading.unknown_model:
                    value = await self._loads.load(loader, call)
                    slot.learn(value)
                    return slot.copies(value)()
            flight, late = self._join(slot, loader, reading, call)
            answer = await self._answer(flight, reading, call)
            if answer.confirmed or not late:
                return answer.make()
        return slot.copies(await self._loads.load(loader, call))()

    def drop(self, prefix: str = "") -> None:
        """Accept no more joiners in the flights of an entry, because it was invalidated."""
        for name in [n for n in self._flights if str(n).startswith(prefix)]:
            del self._flights[name]

    async def close(self) -> None:
        # Canceled flights start tasks that give their leases back.
        await end(*self._running)
        if self._running:
            await asyncio.wait(self._running, timeout=self._options.timeout_s)
            await end(*self._running)

    async def _read(self, slot: Slot) -> Reading | None:
        try:
            return await slot.read()
        except Away:
            self._counters.bypassed += 1
            return None

    def _join(
        self, slot: Slot, loader: Loader, reading: Reading | None, call: LoadOptions
    ) -> tuple[Flight, bool]:
        flight = self._flights.get(slot.name)
        if flight is not None:
            self._counters.joined += 1
            slot.wait()
            return flight, flight.loading
        return self._start(slot, loader, reading, call), False

    def _start(
        self, slot: Slot, loader: Loader, reading: Reading | None, call: LoadOptions
    ) -> Flight:
        async def run() -> Loaded:
            return await self._run(flight, slot, loader, reading, call)

        flight = Flight(slot.name, asyncio.ensure_future(run()))
        self._flights[slot.name] = flight
        self._keep(flight.task)
        return flight

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # mark as retrieved: the waiting callers get it

    async def _answer(self, flight: Flight, reading: Reading | None, call: LoadOptions) -> Loaded:
        stale = reading is not None and reading.found and usable(reading, call.stale_if_error_s)
        flight.waiters += 1
        try:
            async with asyncio.timeout(call.soft_timeout_s if stale else None) as limit:
                return await asyncio.shield(flight.task)
        except TimeoutError:
            if not limit.expired():
                raise
            flight.detached = True
        except Exception as exc:
            if not stale:
                raise
            log.warning("cache.stale_served", name=str(flight.name), error=type(exc).__name__)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.detached and not flight.task.done():
                self._retire(flight)
                flight.task.cancel()
        assert reading is not None  # noqa: S101
        self._counters.stale_served += 1
        found = reading.value
        return Loaded(lambda: found, confirmed=True)

    def _retire(self, flight: Flight) -> None:
        """Accept no more joiners: a later caller starts another flight."""
        if self._flights.get(flight.name) is flight:
            del self._flights[flight.name]

    async def _run(
        self, flight: Flight, slot: Slot, loader: Loader, reading: Reading | None, call: LoadOptions
    ) -> Loaded:
        lease: Lease | None = None
        try:
            if reading is not None:
                leased = await self._loads.acquire(
                    slot, reading, before_read=lambda: self._retire(flight)
                )
                if isinstance(leased, Reading):
                    return Loaded(slot.copies(leased.value), confirmed=True)
                lease = leased
            flight.loading = True
            slot.note("load")
            start = asyncio.get_running_loop().time()
            value = await self._loads.load_leased(slot, loader, lease, call)
            load_s = asyncio.get_running_loop().time() - start
            make = slot.copies(value)
            self._retire(flight)
            held, lease = lease, None
            stored = held is not None and await self._loads.store(slot, held, value, load_s)
            return Loaded(make, stored)
        finally:
            self._retire(flight)
            if lease is not None:
                self._keep(asyncio.ensure_future(self._loads.give_back(slot, lease)))

    def _refresh_early(
        self, slot: Slot, loader: Loader, reading: Reading, call: LoadOptions
    ) -> None:
        """XFetch: a slow loader and a near end make an early refresh more likely."""
        beta, head = self._options.early_refresh_beta, reading.head
        if not beta or head is None or not head.load_us:
            return
        left_ms = head.fresh_until_ms - reading.now_ms
        ahead_ms = -head.load_us / 1000 * beta * math.log(1 - random.random())  # noqa: S311
        if ahead_ms >= left_ms and slot.name not in self._flights:
            self._counters.early_refreshes += 1
            self._start(slot, loader, reading, call).detached = True
