"""
Keeps the cache from filling a server that it shares with the queue.

Such a server evicts nothing, so once a cache has filled it, every enqueue is refused. TTLs
limit how long values are kept; this limits how many: nothing new is stored while the server
uses more than a share of its maxmemory. A value that is not stored is a miss. A server that
evicts makes room by itself.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass

from redis.exceptions import ResponseError

from cache.coherence.guarded import GuardedConnection
from cache.connection.protocol import Away, Connection
from cache.stats import Counters

# For how long one reading of a server's memory is used, seconds; and one of a server that makes room itself.
_READ_EVERY_S, _READ_EVICTING_EVERY_S = 1.0, 60.0
# Nodes that have left their cluster are forgotten with all others.
_MOST_NODES = 1_000
_FACT = re.compile(rb"^(used_memory|maxmemory|maxmemory_policy):(\S+)", re.MULTILINE)


@dataclass(slots=True)
class _Reading:
    """What was free for the cache at a time, and what this process has stored since, bytes."""

    at: float
    free: float
    lasts_s: float = _READ_EVERY_S
    stored: int = 0

    def answers(self, now: float, size: int) -> bool:
        """Whether it still holds. Others store as well, so look again after half of the free memory."""
        return now - self.at < self.lasts_s and (
            self.free <= 0 or 2 * (self.stored + size) <= self.free
        )


class Room:
    """Whether a server has memory left for the cache. `share` is 0 to 1; 0: never asks."""

    def __init__(self, connection: GuardedConnection, share: float, counters: Counters) -> None:
        self._connection = connection
        self._share = share
        self._counters = counters
        self._readings: dict[Connection, _Reading] = {}

    async def left(self, key: str, size: int) -> bool:
        """Whether the key's server has room for so many bytes; True if it cannot be asked."""
        if not self._share or not self._connection.trusted:
            return True
        node = self._connection.unguarded.node_of(key)
        reading, now = self._readings.get(node), time.monotonic()
        if reading is None or not reading.answers(now, size):
            try:
                free = self._free(await node.execute("INFO", "memory"))
                lasts_s = _READ_EVICTING_EVERY_S if free == math.inf else _READ_EVERY_S
            except (Away, ResponseError):
                free, lasts_s = math.inf, _READ_EVERY_S
            reading = _Reading(now, free, lasts_s)
            if len(self._readings) > _MOST_NODES:
                self._readings.clear()
            self._readings[node] = reading
        if size > reading.free:
            self._counters.without_room += 1
            return False
        reading.stored += size
        return True

    def _free(self, info: bytes) -> float:
        found = dict(_FACT.findall(info))
        most = int(found.get(b"maxmemory", 0))
        if not most or found.get(b"maxmemory_policy", b"noeviction") != b"noeviction":
            return math.inf
        return self._share * most - int(found[b"used_memory"])
