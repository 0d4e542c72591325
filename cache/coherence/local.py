"""
Copies inside the process, for the hottest agents: no round trip, a bounded age.

A copy is dropped when the backplane says so, at the latest after its TTL; it
is not used while the backplane is not caught up. Storing one is fenced: the
read marks the entry first, and an invalidation that comes before the answer
takes the mark away, so the answer is not kept.
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
# What a copy costs beside its bytes: the objects that hold it.
_OVERHEAD_BYTES = 1000


@dataclass(slots=True, eq=False)
class Copy:
    """A value as it was read; with nothing `stored` it is shared, and handed out as it is."""

    stored: StoredValue | None
    value: Any
    ends_at: float
    size: int
    group: str | None


@dataclass(slots=True, eq=False)
class Mark:
    """Reads of one entry under way. An invalidation forgets it, and they are not kept."""

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
        self._marks: dict[str, Mark] = {}
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._copies)

    def get(self, key: str, field: str) -> Copy | None:
        """A copy that may be used now. Not one that its TTL or a lost backplane rules out."""
        copy = self._copies.get((key, field))
        if copy is None or not self.usable():
            return None
        if self._now() >= copy.ends_at:
            self._remove((key, field))
            return None
        self._copies.move_to_end((key, field))
        self._counters.local_hits += 1
        return copy

    def begin(self, key: str) -> Mark:
        """Before a read is sent. Give the mark to `keep` or not, then to `end`."""
        mark = self._marks.get(key)
        if mark is None:
            mark = self._marks[key] = Mark()
        mark.readers += 1
        return mark

    def end(self, key: str, mark: Mark) -> None:
        mark.readers -= 1
        if not mark.readers and self._marks.get(key) is mark:
            del self._marks[key]

    def keep(
        self,
        key: str,
        field: str,
        mark: Mark,
        *,
        stored: StoredValue,
        value: Any,
        left_s: float,
        group: str | None = None,
    ) -> bool:
        """Store what was read under a mark. `left_s` is the rest of the value's own life."""
        if self._marks.get(key) is not mark or not self.usable():  # the local fence
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
            group,
        )
        self._fields.setdefault(key, set()).add(field)
        self._bytes += size
        while self._bytes > self._options.max_bytes:
            self._remove(next(iter(self._copies)))
            self._counters.local_evictions += 1
        return True

    def invalidate(self, key: str) -> None:
        """Forget an entry's copies, and do not keep what is being read of it."""
        self._marks.pop(key, None)
        for field in tuple(self._fields.get(key, ())):
            self._remove((key, field))

    def invalidate_group(self, group: str) -> None:
        """Forget the copies of a group (an organisation), and whatever is being read."""
        self._marks.clear()
        for place in [p for p, copy in self._copies.items() if copy.group == group]:
            self._remove(place)

    def flush(self) -> None:
        """Forget everything: something was missed."""
        self._marks.clear()
        self._copies.clear()
        self._fields.clear()
        self._bytes = 0
        self._counters.local_flushes += 1

    def _remove(self, place: tuple[str, str]) -> None:
        copy = self._copies.pop(place)
        self._bytes -= copy.size
        fields = self._fields[place[0]]
        fields.discard(place[1])
        if not fields:
            del self._fields[place[0]]
