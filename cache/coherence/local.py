"""
Keeps copies of hot values inside the process: no round trip, a bounded age.

A copy is dropped when the backplane names its entry, or after its TTL, and is not
used while the backplane has not caught up. A read sets up a fence before it is sent.
An invalidation that arrives before the reply removes the fence, so the reply is not
kept.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from cache.encoding.header import StoredValue
from cache.options import LocalOptions
from cache.stats import Counters

_IMMUTABLE = (bytes, str, int, float, bool, type(None))
# Memory that a copy takes beside its bytes, for the objects that hold it.
_OVERHEAD_BYTES = 1000


@dataclass(slots=True, eq=False)
class Copy:
    """A value as it was read. If `stored` is None, every caller gets the same `value`."""

    stored: StoredValue | None
    value: Any
    ends_at: float
    size: int


class Fence:
    """The running reads of one entry, which hold it. Once it is removed, their values are not kept."""


class LocalLevel:
    """The copies of the entries that were used last."""

    def __init__(
        self, options: LocalOptions, counters: Counters, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.usable: Callable[[], bool] = lambda: True
        self._options = options
        self._counters = counters
        self._now = now
        self._copies: OrderedDict[str, dict[str, Copy]] = OrderedDict()  # by key and field
        self._fences: WeakValueDictionary[str, Fence] = WeakValueDictionary()
        self.size_bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._copies.values()))

    def get(self, key: str, field: str) -> Copy | None:
        """A copy that may be used now: within its TTL, and the backplane has caught up."""
        copies = self._copies.get(key)
        copy = None if copies is None else copies.get(field)
        if copy is None or not self.usable():
            return None
        if self._now() >= copy.ends_at:
            self._remove(key, field)
            return None
        self._copies.move_to_end(key)
        self._counters.local_hits += 1
        return copy

    def begin(self, key: str) -> Fence:
        """Call before a read is sent. Hold the fence until the end, and pass it to `keep`."""
        return self._fences.setdefault(key, Fence())

    def keep(
        self, key: str, field: str, fence: Fence, *, stored: StoredValue, value: Any, left_s: float
    ) -> bool:
        """Store what was read behind a fence. `left_s` is what remains of the value's TTL."""
        if self._fences.get(key) is not fence or not self.usable():
            return False
        shared = self._options.share_objects or isinstance(value, _IMMUTABLE)
        size = len(stored.payload) + _OVERHEAD_BYTES
        life_s = min(self._options.ttl_s, left_s)
        if life_s <= 0 or size > self._options.max_bytes:
            return False
        self._remove(key, field)
        ends_at = self._now() + life_s
        copy = Copy(None, value, ends_at, size) if shared else Copy(stored, None, ends_at, size)
        self._copies.setdefault(key, {})[field] = copy
        self._copies.move_to_end(key)
        self.size_bytes += size
        while self.size_bytes > self._options.max_bytes:
            oldest = next(iter(self._copies))
            self._remove(oldest, next(iter(self._copies[oldest])))
            self._counters.local_evictions += 1
        return True

    def invalidate(self, key: str) -> None:
        """Drop an entry's copies, and keep nothing of the reads that run."""
        self._fences.pop(key, None)
        for field in tuple(self._copies.get(key, ())):
            self._remove(key, field)

    def flush(self) -> None:
        """Drop everything, because an invalidation may have been missed."""
        self._fences.clear()
        self._copies.clear()
        self.size_bytes = 0
        self._counters.local_flushes += 1

    def _remove(self, key: str, field: str) -> None:
        copies = self._copies.get(key, {})
        if field in copies:
            self.size_bytes -= copies.pop(field).size
            if not copies:
                del self._copies[key]
