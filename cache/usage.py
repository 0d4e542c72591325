"""Reads a cache's hit rates by kind, summed over all processes, and its server's memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import RedisCluster

from cache.keys import CACHE_PREFIX, CacheKeys
from cache.totals import counters_of

# A kind, and the names of its counters (docs/caching.md).
_KINDS = {
    "values": ("hits", "misses"),
    "windows": ("window_hits", "window_misses"),
    "messages": ("message_hits", "message_misses"),
}


@dataclass(frozen=True, slots=True)
class KindOfReads:
    """
    Reads of one kind: values (states, blocks, contexts), windows of messages, single messages.

    hit_rate: 0 to 1; None before the first read.
    """

    kind: str
    hits: int
    misses: int
    hit_rate: float | None


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """
    Reads of all processes since the counters began, and memory in bytes, of all primaries together.

    memory_max_bytes: 0 without a limit. evicted_keys: since the servers started.
    """

    reads: list[KindOfReads]
    loads: int
    invalidations: int
    outages: int
    memory_used_bytes: int
    memory_max_bytes: int
    evicted_keys: int


# Raises what `read_usage` does.
UsageReader = Callable[[], Awaitable[CacheUsage]]


def reads_of(counters: Mapping[str, int]) -> list[KindOfReads]:
    """The reads by kind, from counters of one process or of all."""
    found = []
    for kind, (hits, misses) in _KINDS.items():
        hit, missed = counters.get(hits, 0), counters.get(misses, 0)
        rate = hit / (hit + missed) if hit + missed else None
        found.append(KindOfReads(kind, hit, missed, rate))
    return found


async def read_usage(client: Any, prefix: str = CACHE_PREFIX) -> CacheUsage:
    """
    Ask the cache's server. Each process adds its counters there every few seconds.

    Raises:
        RedisError: the server cannot be reached, or refuses.
    """
    stored = await client.hgetall(CacheKeys(prefix).counters)
    counters = counters_of(stored)
    # Of a cluster, only its primaries: a replica's memory holds the same values again.
    nodes = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(client, RedisCluster) else {}
    memory = _by_node(await client.info("memory", **nodes), "used_memory")
    stats = _by_node(await client.info("stats", **nodes), "evicted_keys")
    return CacheUsage(
        reads=reads_of(counters),
        loads=counters.get("loads", 0),
        invalidations=counters.get("invalidations", 0),
        outages=counters.get("outages", 0),
        memory_used_bytes=sum(int(node.get("used_memory", 0)) for node in memory),
        memory_max_bytes=sum(int(node.get("maxmemory", 0)) for node in memory),
        evicted_keys=sum(int(node.get("evicted_keys", 0)) for node in stats),
    )


def _by_node(found: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """INFO of one server, or of each node of a cluster by its name."""
    return [found] if field in found else list(found.values())
