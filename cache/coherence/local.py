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


@dataclass(slots=True, eq=False)
class Fence:
    """The running reads of one entry. Once it is removed, their values are not kept."""

    readers: int = 0


class LocalLevel:
    """An LRU of copies, by entry and field."""

    def __init__(
        self,
        options: LocalOptions,
        counters: Counters,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.usable: Callable[[], bool] = lambda: True
        self._options = options
        self._counters = counters
        self._now = now
        self._copies: OrderedDict[tuple[str, str], Copy] = OrderedDict()
        self._fields: dict[str, set[str]] = {}
        self._fences: dict[str, Fence] = {}
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def reads(self) -> int:
        """Number of entries with running reads."""
        return len(self._fences)

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, key: str, field: str) -> Copy | None:
        """A copy that may be used now: within its TTL, and the backplane has caught up."""
        copy = self._copies.get((key, field))
        if copy is None or not self.usable():
            return None
        if self._now() >= copy.ends_at:
            self._remove((key, field))
            return None
        self._copies.move_to_end((key, field))
        self._counters.local_hits += 1
        return copy

    def begin(self, key: str) -> Fence:
        """Call before a read is sent. Pass the fence to `keep` if a value came, then to `end`."""
        fence = self._fences.get(key)
        if fence is None:
            fence = self._fences[key] = Fence()
        fence.readers += 1
        return fence

    def end(self, key: str, fence: Fence) -> None:
        fence.readers -= 1
        if not fence.readers and self._fences.get(key) is fence:
            del self._fences[key]

    def keep(
        self,
        key: str,
        field: str,
        fence: Fence,
        *,
        stored: StoredValue,
        value: Any,
        left_s: float,
    ) -> bool:
        """Store what was read behind a fence. `left_s` is what remains of the value's TTL."""
        if self._fences.get(key) is not fence or not self.usable():
            return False
        shared = self._options.share_objects or isinstance(value, _IMMUTABLE)
        size = len(stored.payload) + _OVERHEAD_BYTES
        life_s = min(self._options.ttl_s, left_s)
        if life_s <= 0 or size > self._options.max_bytes:
            return False
        if (key, field) in self._copies:
            self._remove((key, field))
        self._copies[key, field] = Copy(
            None if shared else stored,
            value if shared else None,
            self._now() + life_s,
            size,
        )
        self._fields.setdefault(key, set()).add(field)
        self._bytes += size
        while self._bytes > self._options.max_bytes:
            self._remove(next(iter(self._copies)))
            self._counters.local_evictions += 1
        return True

    def invalidate(self, key: str) -> None:
        """Drop an entry's copies, and keep nothing of the reads that run."""
        self._fences.pop(key, None)
        for field in tuple(self._fields.get(key, ())):
            self._remove((key, field))

    def flush(self) -> None:
        """Drop everything, because an invalidation may have been missed."""
        self._fences.clear()
        self._copies.clear()
        self._fields.clear()
        self._bytes = 0
        self._counters.local_flushes += 1

    def _remove(self, name: tuple[str, str]) -> None:
        copy = self._copies.pop(name)
        self._bytes -= copy.size
        fields = self._fields[name[0]]
        fields.discard(name[1])
        if not fields:
            del self._fields[name[0]]
