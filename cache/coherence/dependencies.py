"""
Keeps the index of dependencies: which agents hold values that depend on a block, tool or tag.

An agent is recorded before its value is stored. So an invalidation either finds the
agent in the index, or the record is refused because it came after the invalidation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cache.coherence.guarded import GuardedConnection
from cache.coherence.results import Lease
from cache.connection import scripts
from cache.keys import CACHE_INDEX_MARGIN_MS, CacheKeys

_EVICTED = re.compile(rb"^evicted_keys:(\d+)", re.MULTILINE)
# On a cluster the index may be on another node than the agent, so clocks of two machines are
# compared. Refusing a little too much costs a load.
_CLOCK_MARGIN_US = 2_000_000

Member = tuple[bytes, bytes]  # field of the index, time of the record


class DependencyIndex:
    """Records who depends on a name, and gives the members that an invalidation must reach."""

    def __init__(
        self, connection: GuardedConnection, keys: CacheKeys, *, max_members: int, cluster: bool
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._max_members = max_members
        self._margin_us = _CLOCK_MARGIN_US if cluster else 0
        self._depend = scripts.load(__package__, "depend")
        self._undepend = scripts.load(__package__, "undepend")

    async def record(self, agent_id: str, names: Iterable[str], lease: Lease, ttl_ms: int) -> bool:
        """
        Record what a value depends on, before it is stored. False if one changed since the lease.

        Raises:
            Away: not recorded, so the value must not be stored.
        """
        since_us, index_ms = lease.granted_us - self._margin_us, ttl_ms + CACHE_INDEX_MARGIN_MS
        for name in names:
            args = (agent_id, since_us, index_ms, self._max_members)
            if not await self._connection.run(self._depend, [self._keys.dependency(name)], args):
                return False
        return True

    async def begin(self, name: str) -> list[Member] | None:
        """
        Refuse older leases from here on, and list who must be invalidated.

        None when that is unknown: the index overflowed, or the server may have evicted it.

        Raises:
            Away: the invalidation has not begun.
        """
        args = ("begin", CACHE_INDEX_MARGIN_MS)
        flat = await self._undepend.run(
            self._connection.unguarded, [self._keys.dependency(name)], args
        )
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if b"o" in fields or (not fields and await self._evicts()):
            return None
        return [(field, at) for field, at in fields.items() if field[:1] == b"m"]

    def entry_key(self, member: Member) -> str:
        """The key of a member's entry."""
        return self._keys.agent(member[0][1:].decode())

    async def remove(self, name: str, members: Sequence[Member]) -> None:
        """Remove members that were invalidated, unless they were recorded again meanwhile."""
        pairs = [item for member in members for item in member]
        await self._undepend.run(
            self._connection.unguarded, [self._keys.dependency(name)], ("end", *pairs)
        )

    async def clear_overflow(self, name: str) -> None:
        """After everything was invalidated, the index is complete again."""
        await self._connection.unguarded.execute("HDEL", self._keys.dependency(name), "o")

    async def _evicts(self) -> bool:
        """Whether the server has ever evicted a key. Unknown counts as yes."""
        for node in await self._connection.unguarded.nodes():
            found = _EVICTED.search(await node.execute("INFO", "stats"))
            if found is None or int(found[1]):
                return True
        return False
