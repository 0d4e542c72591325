"""
Implements get_or_load: a single flight in the process, a lease across processes.

On a miss a caller joins the value's flight, or starts it. A flight gets the lease
(lease.lua), or waits for the process that holds it; then it loads and stores. fill.lua
refuses that if an invalidation or another write came after the lease was granted.

Two rules make joining safe (docs/caching.md draws the races):
- A flight accepts joiners only until its answer is under way: it leaves the table
  before a fill or a second read is sent. Otherwise a caller that came after an
  invalidation could get an answer from before it.
- A load that was refused or not confirmed answers only the callers that came before
  its loader started. Later joiners start over.

A value without an encoding cannot be copied, so only one caller gets it. The others load
for themselves.
"""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress
from typing import Any

from cache.coherence.backplane import Backplane
from cache.coherence.entries import Entries
from cache.coherence.flight import Flight, Loaded, Loader, LoadOptions, Slot, run_loader
from cache.coherence.results import Held, Intended, Lease, Reading
from cache.connection.protocol import Away
from cache.connection.tasks import end, keep
from cache.encoding.envelope import Unshared
from cache.errors import InvalidName, NotEncodable
from cache.logs import get_logger
from cache.options import CacheOptions
from cache.stats import Counters

log = get_logger(__name__)

# A caller that starts over runs a loader each time. After this many, it loads for itself alone.
_ATTEMPTS = 4
# A waiter that misses its wake-up looks again after this.
_LOOK_AGAIN_S = 0.25


class ReadThrough:
    """The flights of this process."""

    def __init__(
        self, entries: Entries, backplane: Backplane, options: CacheOptions, counters: Counters
    ) -> None:
        self._entries = entries
        self._backplane = backplane
        self._options = options
        self._counters = counters
        self._flights: dict[str, Flight] = {}
        self._running: set[asyncio.Task[Any]] = set()

    async def get_or_load(
        self, slot: Slot, loader: Loader, call: LoadOptions, first: Reading | None = None
    ) -> Any:
        """The stored value (`first`, if already read), or the loader's. Raises only what the loader raises."""
        for _ in range(_ATTEMPTS):
            reading, first = first or await self._read(slot), None
            if reading is not None:
                slot.note("hit" if reading.fresh else "miss", reading.value)
                if reading.fresh:
                    if self._is_due_early(reading) and slot.name not in self._flights:
                        self._counters.early_refreshes += 1
                        self._start(Flight(slot, loader, call, reading, detached=True))
                    return reading.value
                if reading.unknown_model:
                    value = await self._load(loader, call)
                    slot.learn(value)
                    return slot.copies(value)()
            flight = self._flights.get(slot.name)
            late = flight is not None and flight.loading
            if flight is None:
                flight = self._start(Flight(slot, loader, call, reading))
            else:
                self._counters.joined += 1
                slot.wait()
            answer = await self._answer(flight, reading, call)
            if answer.confirmed or not late:
                try:
                    return answer.make()
                except Unshared:
                    break  # it cannot be copied, so it cannot be shared
        return slot.copies(await self._load(loader, call))()

    def drop(self, prefix: str = "") -> None:
        """Accept no more joiners in the flights of an entry, because it was invalidated."""
        for name in [n for n in self._flights if n.startswith(prefix)]:
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

    def _start(self, flight: Flight) -> Flight:
        flight.task = keep(self._running, self._run(flight))
        # Marks its error as retrieved: the waiting callers get it.
        flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._flights[flight.slot.name] = flight
        return flight

    async def _answer(self, flight: Flight, reading: Reading | None, call: LoadOptions) -> Loaded:
        # Whether the expired value may be served if the loader fails.
        stale = reading is not None and reading.found and reading.expired_s < call.stale_if_error_s
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
            log.warning("cache.stale_served", name=flight.slot.name, error=type(exc).__name__)
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
        if self._flights.get(flight.slot.name) is flight:
            del self._flights[flight.slot.name]

    async def _run(self, flight: Flight) -> Loaded:
        slot, lease = flight.slot, None
        try:
            leased = await self._acquire(flight)
            if isinstance(leased, Reading):
                return Loaded(slot.copies(leased.value), confirmed=True)
            lease = leased
            flight.loading = True
            slot.note("load")
            start = asyncio.get_running_loop().time()
            value = await self._load_leased(flight, lease)
            load_s = asyncio.get_running_loop().time() - start
            make = slot.copies(value)
            self._retire(flight)
            held, lease = lease, None
            stored = held is not None and await self._store(slot, held, value, load_s)
            return Loaded(make, stored)
        finally:
            self._retire(flight)
            if lease is not None:
                keep(self._running, self._give_back(slot, lease))

    def _is_due_early(self, reading: Reading) -> bool:
        """XFetch: a slow loader and a near end make an early refresh more likely."""
        beta, head = self._options.early_refresh_beta, reading.head
        if not beta or head is None or not head.load_us:
            return False
        ahead_ms = -head.load_us / 1000 * beta * math.log(1 - random.random())  # noqa: S311
        return ahead_ms >= head.fresh_until_ms - reading.now_ms

    async def _acquire(self, flight: Flight) -> Lease | Reading | None:
        """
        Return the lease, or the value that another holder has stored.

        None if the server is away or the entry is being written: load, but store nothing.
        """
        slot, seen = flight.slot, flight.reading
        with suppress(Away):
            while seen is not None:
                with self._backplane.expect(slot.entry) as wake:
                    leased = await slot.lease(seen)
                    if isinstance(leased, Lease):
                        return leased
                    if isinstance(leased, Intended):
                        return None
                    if isinstance(leased, Held):
                        slot.wait()
                        if wake is None:
                            await self._backplane.listen()
                        else:
                            self._counters.waits += 1
                            await asyncio.wait([wake], timeout=min(leased.left_s, _LOOK_AGAIN_S))
                        continue
                self._retire(flight)
                seen = await slot.read()
                if seen.fresh or seen.unknown_model:
                    return seen if seen.fresh else None
        return None

    async def _load_leased(self, flight: Flight, lease: Lease | None) -> Any:
        """Run the loader, and renew the lease until it has returned."""
        renewing = asyncio.ensure_future(self._renew(flight.slot, lease)) if lease else None
        try:
            return await self._load(flight.loader, flight.call)
        finally:
            if renewing is not None:
                renewing.cancel()

    async def _renew(self, slot: Slot, lease: Lease) -> None:
        with suppress(Away):
            await slot.prepare(lease)
        with suppress(Away):
            while True:
                await asyncio.sleep(self._options.lease_s / 3)
                if not await self._entries.renew(lease):
                    return

    async def _load(self, loader: Loader, call: LoadOptions) -> Any:
        self._counters.loads += 1
        try:
            return await run_loader(loader, call.hard_timeout_s)
        except Exception:
            self._counters.load_errors += 1
            raise

    async def _store(self, slot: Slot, lease: Lease, value: Any, load_s: float) -> bool:
        """Store a loaded value. True means that nothing was invalidated since the lease."""
        try:
            stored = await slot.store(lease, value, load_s)
        except Away:
            stored = -1  # after a refused command, the lease is still held
        except (NotEncodable, InvalidName) as exc:
            self._counters.not_encodable += 1
            log.warning("cache.value_not_encodable", name=slot.name, error=str(exc))
            stored = -1
        if stored == -1:
            await self._give_back(slot, lease)
        elif stored != 1:
            # A refused fill has lost the lease and its waiting flag, so wake in any case.
            self._backplane.wake(slot.entry)
        return stored > 0

    async def _give_back(self, slot: Slot, lease: Lease) -> None:
        """Release a lease without a value, and wake those that wait for it."""
        with suppress(Away):
            if await self._entries.release(lease):
                self._backplane.wake(slot.entry)
