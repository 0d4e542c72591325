"""
Keeps the index of dependencies: which agents hold values of a block, tool, tag or organization.

An agent is recorded with its value (fill.lua); on a cluster, where the indexes are on
other slots, before it (depend.lua). So an invalidation (forget.lua) either finds the
agent in the index, or the value is refused because it was loaded before the
invalidation, or during the write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from cache.coherence.guarded import GuardedConnection
from cache.coherence.results import Lease
from cache.connection import scripts
from cache.connection.protocol import Connection
from cache.keys import CACHE_INDEX_MARGIN_MS, intents_of

# On a cluster the index may be on another node than the agent, so clocks of two machines are
# compared. Refusing a little too much costs a load.
_CLOCK_MARGIN_US = 2_000_000
# The end of a write is remembered for the margin. A load that took longer may be older.
_LONGEST_LOAD_US = (CACHE_INDEX_MARGIN_MS - 10_000) * 1000

# Keys and arguments by which fill.lua records what a value depends on.
Record = tuple[Sequence[str], Sequence[Any]]


class DependencyIndex:
    """Records who depends on what."""

    def __init__(self, connection: GuardedConnection, max_members: int) -> None:
        # Whether the indexes are on other slots than the values, so that `record` comes first.
        self.apart = connection.spread
        self._connection = connection
        self._max_members = max_members
        self._depend = scripts.load(__package__, "depend")

    def with_fill(self, agent_id: str, indexes: Sequence[str], lease: Lease, ttl_ms: int) -> Record:
        """Keys and arguments by which fill.lua records an agent in these indexes."""
        if self.apart or not indexes:
            return (), ()
        return indexes, self._args(agent_id, lease.granted_us, ttl_ms)

    async def record(
        self, agent_id: str, indexes: Sequence[str], lease: Lease, ttl_ms: int
    ) -> bool:
        """
        Record an agent in these indexes, before its value is stored. It must not be if this raises
        Away, or returns False: one of them changed since the lease, or is being written.
        """
        args = self._args(agent_id, lease.granted_us - _CLOCK_MARGIN_US, ttl_ms)
        runs = (self._connection.run(self._depend, [key], args) for key in indexes)
        return all(await asyncio.gather(*runs))

    def remembers(self, load_s: float) -> bool:
        """Whether what was recorded at the start of a load lasts as long as its value."""
        return load_s * 1e6 < _LONGEST_LOAD_US

    def _args(self, agent_id: str, leased_us: int, ttl_ms: int) -> Sequence[Any]:
        keep_ms = ttl_ms + CACHE_INDEX_MARGIN_MS
        return agent_id, leased_us, keep_ms, self._max_members, _LONGEST_LOAD_US


async def listed(
    server: Connection, index: str, highest: bytes, most: int
) -> AsyncIterator[tuple[str, ...]]:
    """
    Yield the agents of an index up to a score, about `most` at a time.

    A page begins at the last score of the page before, not at a rank: others take agents out.
    """
    low, count, seen = b"-inf", most, set[bytes]()
    while True:
        page = ("BYSCORE", "LIMIT", 0, count, "WITHSCORES")
        rows = await server.execute("ZRANGE", index, low, highest, *page)
        agents, scores = rows[::2], rows[1::2]
        # No agent has a name that is not UTF-8, but a foreign writer may list one.
        names = (agent.decode(errors="replace") for agent in agents if agent not in seen)
        if found := tuple(name for name in names if name):
            yield found
        if len(agents) < count:
            return
        if scores[-1] == low:  # a page of one score: ask for more of it
            count *= 2
        else:
            low, count = scores[-1], most
        seen = {agent for agent, score in zip(agents, scores, strict=True) if score == low}


async def prune(server: Connection, index: str, now_us: bytes, most: int) -> None:
    """Take out of an index what the invalidation of this time has forgotten (prune.lua)."""
    script, taken = scripts.load(__package__, "prune"), most
    while taken == most:
        taken = await script.run(server, [index, intents_of(index)], [now_us, most])
