"""
Keeps the index of dependencies: which agents hold values of a block, tool, tag or organization.

An agent is recorded before its value is stored. So an invalidation (forget.lua)
either finds the agent in the index, or the record is refused because it came after
the invalidation, or during the write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cache.coherence.guarded import GuardedConnection
from cache.coherence.results import Lease
from cache.connection import scripts
from cache.keys import CACHE_INDEX_MARGIN_MS

# On a cluster the index may be on another node than the agent, so clocks of two machines are
# compared. Refusing a little too much costs a load.
_CLOCK_MARGIN_US = 2_000_000
# The end of a write is remembered for the margin. A load that took longer may be older.
_LONGEST_LOAD_US = (CACHE_INDEX_MARGIN_MS - 10_000) * 1000


class DependencyIndex:
    """Records who depends on what."""

    def __init__(self, connection: GuardedConnection, *, max_members: int, cluster: bool) -> None:
        self._connection = connection
        self._max_members = max_members
        self._cluster = cluster
        self._depend = scripts.load(__package__, "depend")

    async def record(
        self, agent_id: str, indexes: Sequence[str], lease: Lease, ttl_ms: int
    ) -> bool:
        """
        Record an agent in these indexes, before its value is stored.

        False if one of them changed since the lease, or is being written.

        Raises:
            Away: not recorded, so the value must not be stored.
        """
        if not indexes:
            return True
        leased_us = lease.granted_us - (_CLOCK_MARGIN_US if self._cluster else 0)
        args = (
            agent_id, leased_us, ttl_ms + CACHE_INDEX_MARGIN_MS, self._max_members,
            _LONGEST_LOAD_US,
        )  # fmt: skip
        groups = [[key] for key in indexes] if self._cluster else [indexes]
        runs = (self._connection.run(self._depend, group, args) for group in groups)
        return all(await asyncio.gather(*runs))
