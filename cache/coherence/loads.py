"""
Loads one value under its lease, and stores it.

The lease (lease.lua) lets one loader run in all processes. fill.lua refuses what it
returned if an invalidation or another write came after the lease was granted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cache.coherence.backplane import Backplane
from cache.coherence.flight import Loader, LoadOptions, Slot
from cache.coherence.results import Held, Intended, Lease, Reading
from cache.connection.protocol import Away
from cache.errors import InvalidName, LoaderTimeout, NotEncodable
from cache.logs import get_logger
from cache.options import CacheOptions
from cache.stats import Counters

log = get_logger(__name__)

# A waiter that misses its wake-up looks again after this.
_LOOK_AGAIN_S = 0.25


class LeasedLoads:
    """Runs loaders, with a lease or, while there is none, without it."""

    def __init__(self, backplane: Backplane, options: CacheOptions, counters: Counters) -> None:
        self._backplane = backplane
        self._options = options
        self._counters = counters

    async def acquire(
        self, slot: Slot, seen: Reading, *, before_read: Callable[[], None]
    ) -> Lease | Reading | None:
        """
        Get the lease, or the value that another holder has stored.

        None while the server is away or the entry is being written: load, but store nothing.

        `before_read` is called each time before the value is read again.
        """
        wakes = self._backplane
        try:
            while True:
                wake = wakes.expect(slot.entry) if wakes.listening else None
                try:
                    leased = await slot.lease(seen)
                    if isinstance(leased, Lease):
                        return leased
                    if isinstance(leased, Intended):
                        return None
                    if isinstance(leased, Held):
                        slot.wait()
                        if wake is None:
                            await wakes.listen()
                            continue
                        self._counters.waits += 1
                        await asyncio.wait([wake], timeout=min(leased.left_s, _LOOK_AGAIN_S))
                        continue
                finally:
                    if wake is not None:
                        wakes.forget(slot.entry, wake)
                before_read()
                seen = await slot.read()
                if seen.fresh or seen.unknown_model:
                    return seen if seen.fresh else None
        except Away:
            return None

    async def load_leased(
        self, slot: Slot, loader: Loader, lease: Lease | None, call: LoadOptions
    ) -> Any:
        """Run the loader, and renew the lease until it has returned."""
        if lease is None:
            return await self.load(loader, call)
        renewing = asyncio.ensure_future(self._renew(slot, lease))
        try:
            return await self.load(loader, call)
        finally:
            renewing.cancel()

    async def _renew(self, slot: Slot, lease: Lease) -> None:
        with suppress(Away):
            await slot.prepare(lease)
        with suppress(Away):
            while True:
                await asyncio.sleep(self._options.lease_s / 3)
                if not await slot.renew(lease):
                    return

    async def load(self, loader: Loader, call: LoadOptions) -> Any:
        """
        Run the loader within its hard limit, and count it.

        Raises:
            LoaderTimeout: the limit passed. Otherwise what the loader raises.
        """
        self._counters.loads += 1
        limit_s = call.hard_timeout_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await loader()
        except TimeoutError:
            self._counters.load_errors += 1
            if limit.expired():
                raise LoaderTimeout(
                    f"the loader took longer than {limit_s} s and was canceled; raise "
                    "LETTA_CACHE_LOADER_TIMEOUT_S or loader_timeout_s"
                ) from None
            raise
        except Exception:
            self._counters.load_errors += 1
            raise

    async def store(self, slot: Slot, lease: Lease, value: Any, load_s: float) -> bool:
        """Store a loaded value. True means that nothing was invalidated since the lease."""
        try:
            stored = await slot.store(lease, value, load_s)
        except Away:
            await self.give_back(slot, lease)  # after a refused command, it is still held
            return False
        except (NotEncodable, InvalidName) as exc:
            self._counters.not_encodable += 1
            log.warning("cache.value_not_encodable", name=slot.name, error=str(exc))
            stored = -1
        if stored == -1:
            await self.give_back(slot, lease)
        elif stored != 1:
            # After a refused fill the lease, and with it the waiting flag, is gone: wake always.
            self._backplane.wake(slot.entry)
        return stored > 0

    async def give_back(self, slot: Slot, lease: Lease) -> None:
        """Release a lease without a value, and wake those that wait for it."""
        with suppress(Away):
            if await slot.release(lease):
                self._backplane.wake(slot.entry)
