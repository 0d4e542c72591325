"""
get_or_load: one loader at a time, in the process and across processes, and nothing stale.

A miss joins a flight. The flight takes the lease (lease.lua), or waits for
the process that holds it; then it loads, and stores with fill.lua, which
refuses when an invalidation or another write came since the lease.

Two rules make the joining safe (docs/caching.md draws the races):
- A flight takes joiners only until its answer is on the way: before a fill or
  a re-read is sent, it leaves the table. Otherwise a caller that came after
  an invalidation could be handed an answer from before it.
- A refused or unconfirmed load answers only those who came before the loader
  was started. Whoever joined later starts over.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Hashable
from contextlib import suppress
from typing import Any

import structlog

from cache.coherence.backplane import Backplane
from cache.coherence.entries import Held, Lease, Reading
from cache.coherence.flight import Flight, Loaded, Loader, LoadOptions, Slot, usable
from cache.connection.protocol import Away
from cache.connection.tasks import end
from cache.errors import InvalidName, LoaderTimeout, NotEncodable
from cache.options import CacheOptions
from cache.stats import Counters

log = structlog.get_logger(__name__)

# A wake-up that was lost costs a waiter at most this.
_LOOK_AGAIN_S = 0.25
# Starting over costs a loader each time; then a caller loads for himself alone.
_ATTEMPTS = 4


class ReadThrough:
    """The flights of one process."""

    def __init__(self, backplane: Backplane, options: CacheOptions, counters: Counters) -> None:
        self._backplane = backplane
        self._options = options
        self._counters = counters
        self._flights: dict[Hashable, Flight] = {}
        self._running: set[asyncio.Task[Any]] = set()

    async def get_or_load(self, slot: Slot, loader: Loader, call: LoadOptions) -> Any:
        """The stored value, or the loader's. Raises only what the loader raises."""
        for _ in range(_ATTEMPTS):
            reading = await self._read(slot)
            if reading is not None:
                slot.note("hit" if reading.fresh else "miss", reading.value)
                if reading.fresh:
                    self._refresh_early(slot, loader, reading, call)
                    return reading.value
                if reading.unknown_model:
                    value = await self._load(loader, call)
                    slot.learn(value)
                    return value
            flight, late = self._join(slot, loader, reading, call)
            answer = await self._answer(flight, reading, call)
            if answer.confirmed or not late:
                return answer.value
        return await self._load(loader, call)

    def drop(self, prefix: str = "") -> None:
        """Let nobody join the flights of an entry any more: it was invalidated."""
        for name in [n for n in self._flights if str(n).startswith(prefix)]:
            del self._flights[name]

    async def close(self) -> None:
        # Cancelled flights give their leases back, in tasks that come after them.
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
            return flight, flight.loading
        return self._start(slot, loader, reading, call), False

    def _start(
        self, slot: Slot, loader: Loader, reading: Reading | None, call: LoadOptions
    ) -> Flight:
        async def fly() -> Loaded:
            return await self._fly(flight, slot, loader, reading, call)

        flight = Flight(slot.name, asyncio.ensure_future(fly()))
        self._flights[slot.name] = flight
        self._keep(flight.task)
        return flight

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # those who waited have it

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
                self._land(flight)
                flight.task.cancel()
        assert reading is not None  # noqa: S101
        self._counters.stale_served += 1
        return Loaded(reading.value, confirmed=True)

    def _land(self, flight: Flight) -> None:
        """From here on, whoever comes starts a flight of his own."""
        if self._flights.get(flight.name) is flight:
            del self._flights[flight.name]

    async def _fly(
        self, flight: Flight, slot: Slot, loader: Loader, reading: Reading | None, call: LoadOptions
    ) -> Loaded:
        lease: Lease | None = None
        try:
            if reading is not None:
                leased = await self._acquire(flight, slot, reading)
                if isinstance(leased, Reading):
                    return Loaded(leased.value, confirmed=True)
                lease = leased
            flight.loading = True
            slot.note("load")
            start = asyncio.get_running_loop().time()
            value = await self._load_leased(slot, loader, lease, call)
            load_s = asyncio.get_running_loop().time() - start
            self._land(flight)
            held, lease = lease, None
            return Loaded(value, held is not None and await self._store(slot, held, value, load_s))
        finally:
            self._land(flight)
            if lease is not None:
                self._keep(asyncio.ensure_future(self._give_back(slot, lease)))

    async def _acquire(self, flight: Flight, slot: Slot, seen: Reading) -> Lease | Reading | None:
        """The lease, or the value that its holder stored meanwhile; None when away."""
        wakes = self._backplane
        try:
            while True:
                wake = wakes.expect(slot.entry) if wakes.listening else None
                try:
                    leased = await slot.lease(seen)
                    if isinstance(leased, Lease):
                        return leased
                    if isinstance(leased, Held):
                        if wake is None:
                            await wakes.listen()
                            continue
                        self._counters.waits += 1
                        await asyncio.wait([wake], timeout=min(leased.left_s, _LOOK_AGAIN_S))
                        continue
                finally:
                    if wake is not None:
                        wakes.forget(slot.entry, wake)
                self._land(flight)
                seen = await slot.read()
                if seen.fresh or seen.unknown_model:
                    return seen if seen.fresh else None
        except Away:
            return None

    async def _load_leased(
        self, slot: Slot, loader: Loader, lease: Lease | None, call: LoadOptions
    ) -> Any:
        if lease is None:
            return await self._load(loader, call)
        renewing = asyncio.ensure_future(self._renew(slot, lease))
        try:
            return await self._load(loader, call)
        finally:
            renewing.cancel()

    async def _renew(self, slot: Slot, lease: Lease) -> None:
        with suppress(Away):
            while True:
                await asyncio.sleep(self._options.lease_s / 3)
                if not await slot.renew(lease):
                    return

    async def _load(self, loader: Loader, call: LoadOptions) -> Any:
        self._counters.loads += 1
        limit_s = call.hard_timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await loader()
        except TimeoutError:
            self._counters.load_errors += 1
            if limit.expired():
                raise LoaderTimeout(f"the loader took longer than {limit_s} s") from None
            raise
        except Exception:
            self._counters.load_errors += 1
            raise

    async def _store(self, slot: Slot, lease: Lease, value: Any, load_s: float) -> bool:
        """True when stored: nothing was invalidated between lease and now."""
        try:
            stored = await slot.store(lease, value, load_s)
        except Away:
            await self._give_back(slot, lease)  # a refused command leaves it held
            return False
        except (NotEncodable, InvalidName) as exc:
            self._counters.not_encodable += 1
            log.warning("cache.value_not_encodable", name=slot.name, error=str(exc))
            stored = -1
        if stored == -1:
            await self._give_back(slot, lease)
        elif stored != 1:
            # Those who wait for a refused fill cannot know: its lease is gone with their mark.
            self._backplane.wake(slot.entry)
        return stored > 0

    async def _give_back(self, slot: Slot, lease: Lease) -> None:
        with suppress(Away):
            if await slot.release(lease):
                self._backplane.wake(slot.entry)

    def _refresh_early(
        self, slot: Slot, loader: Loader, reading: Reading, call: LoadOptions
    ) -> None:
        """XFetch: the slower the loader and the nearer the end, the likelier a refresh."""
        beta, head = self._options.early_refresh_beta, reading.head
        if not beta or head is None or not head.load_us:
            return
        left_ms = head.fresh_until_ms - reading.now_ms
        ahead_ms = -head.load_us / 1000 * beta * math.log(1 - random.random())  # noqa: S311
        if ahead_ms >= left_ms and slot.name not in self._flights:
            self._counters.early_refreshes += 1
            self._start(slot, loader, reading, call).detached = True
