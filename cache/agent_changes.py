"""Stores and invalidates states of agents: the half of `cache.agents` that changes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cache.coherence.change import Change
from cache.coherence.results import Lease
from cache.components import Dependencies
from cache.connection.protocol import Away
from cache.names import MAX_NAME, checked_agent_ids, checked_names
from cache.values import Values, checked_dependencies


class AgentChanges(Values):
    """What `AgentStateCache` adds to and removes from the cache."""

    async def set(
        self,
        agent_id: str,
        value: Any,
        *,
        scope: str = "",
        ttl_s: float | None = None,
        organisation: str | None = None,
        depends_on: Dependencies = (),
    ) -> bool:
        """
        Store a state, and refuse every load under way. If it returns False, none is stored.

        If two writers commit and then set, the later set wins, not the later commit. So after a
        write, `invalidate` is the safe call.

        Raises:
            NotEncodable: a part of the value would not come back as given.
        """
        dependencies = checked_dependencies(depends_on)
        slot = self._slot(agent_id, scope, organisation, ttl_s=ttl_s, dependencies=dependencies)
        return await self._set(slot, value)

    async def lease(
        self, agent_id: str, *, scope: str = "", organisation: str | None = None
    ) -> Lease | None:
        """
        The right to `fill` one state, for callers that load without `get_or_load`.

        None if another process holds it, a fresh value is stored, or the server is away.
        """
        slot = self._slot(agent_id, scope, organisation)
        try:
            seen = await slot.read()
            leased = None if seen.fresh else await slot.lease(seen)
        except Away:
            return None
        return leased if isinstance(leased, Lease) else None

    async def fill(
        self,
        agent_id: str,
        value: Any,
        lease: Lease,
        *,
        scope: str = "",
        organisation: str | None = None,
        ttl_s: float | None = None,
        depends_on: Dependencies = (),
    ) -> bool:
        """
        Store what was loaded under a lease. False if it was not stored.

        It is refused if the agent, or what it depends on, was invalidated since the lease.
        """
        dependencies = checked_dependencies(depends_on)
        slot = self._slot(agent_id, scope, organisation, ttl_s=ttl_s, dependencies=dependencies)
        try:
            return await slot.store(lease, value) > 0
        except Away:
            return False

    async def invalidate(
        self,
        *agent_ids: str,
        dependencies: Iterable[str] = (),
        organisations: Iterable[str] = (),
    ) -> bool:
        """
        Invalidate agents: every scope, block and context. As `Cache.invalidate`.

        Args:
            dependencies: names as in `depends_on`; every agent whose value named one.
            organisations: every agent with a value that was stored with one as `organisation`.
        """
        change = Change(
            checked_agent_ids(agent_ids),
            checked_names("dependencies", dependencies),
            checked_names("organisations", organisations),
        )
        if not len(change) or not self._options.enabled:
            return True
        return await self._components.invalidation.deliver(change)

    async def invalidate_dependency(self, *names: str) -> bool:
        """Invalidate every agent whose value named one of these in `depends_on`."""
        return await self.invalidate(dependencies=checked_names("names", names))

    async def invalidate_tag(self, *tags: str) -> bool:
        """Invalidate every agent that depends on `tag:<tag>`."""
        found = checked_names("tags", tags, longest=MAX_NAME - len("tag:"))
        return await self.invalidate_dependency(*(f"tag:{tag}" for tag in found))

    async def invalidate_organisation(self, *organisations: str) -> bool:
        """Invalidate every agent with a value that was stored with one of these as `organisation`."""
        return await self.invalidate(organisations=organisations)
