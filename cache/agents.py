"""
AgentStateCache: states by scope, memory blocks, compiled contexts and sessions of agents.

All that is copied from elsewhere shares the agent's entry, so `invalidate`
forgets it together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pydantic import BaseModel

from cache.coherence.flight import Loader, LoadOptions
from cache.coherence.results import Lease, value_key
from cache.components import Components, Dependencies
from cache.connection.protocol import Away
from cache.names import MAX_NAME, check_scope, checked_agent_ids, checked_names
from cache.sessions import Sessions
from cache.values import NamedValues, Values, checked_dependencies

_WARM_AT_ONCE = 8
_READ_AT_ONCE = 100


class AgentStateCache(Values):
    """`cache.agents`. An outage is a miss, never an error; values are JSON-able, bytes or models."""

    def __init__(self, components: Components) -> None:
        super().__init__(components, "state", named="scope")
        self.blocks = NamedValues(components, "block")
        self.contexts = NamedValues(components, "context")
        self.sessions = Sessions(components)

    async def get(
        self,
        agent_id: str,
        *,
        scope: str = "",
        organisation: str | None = None,
        model: type[BaseModel] | None = None,
    ) -> Any:
        """
        Return an agent's cached state, or None on a miss.

        One MGET of the era, `lc:{id}` and `lc:{id}:state:{scope}` (docs/keys.md), with the
        organisation's generation in the same write when one is named. A value of another
        schema version, of an era that has ended, or altered is a miss.

        Args:
            scope: the variant; values of different scopes are apart, and go together.
            organisation: who owns it, for `invalidate_organisation`; part of the place.
            model: the pydantic class to decode as. Without, a model comes back as the class of
                that name that this process has stored, and is a miss before it has.
        """
        if organisation is None and self._components.local is not None:
            # The shortest way to the process's own copy; _get takes the same one. There is none
            # under an odd name, which _slot refuses.
            try:
                key, field = self._open + agent_id + "}", "state:" + scope
            except TypeError:
                key = field = ""
            held, value = self._copy(key, field, model)
            if held:
                return value
        return await self._get(self._slot(agent_id, scope, organisation, model))

    async def get_or_load(
        self,
        agent_id: str,
        loader: Loader,
        *,
        scope: str = "",
        ttl_s: float | None = None,
        organisation: str | None = None,
        depends_on: Dependencies = (),
        model: type[BaseModel] | None = None,
        stale_if_error_s: float = 0.0,
        soft_timeout_s: float | None = None,
        loader_timeout_s: float | None = None,
    ) -> Any:
        """
        Return an agent's state from the cache, or else from `loader`, and keep it.

        Of all processes, one runs the loader; the others are handed its answer. What the
        loader read before an invalidation is neither stored nor handed to anyone who came
        after it. None is kept too, for the negative TTL.

        Args:
            ttl_s: life of the value, seconds, less jitter; default of the settings.
            depends_on: names such as `block:b1` or `tag:t`, or a function of the value that
                gives them: `invalidate_dependency` then reaches this agent.
            stale_if_error_s: an expired value may stand in this long for a loader that fails.
            soft_timeout_s: with such a value at hand, wait this long for the loader, then serve
                it; the loader goes on.
            loader_timeout_s: hard limit of the loader, which is cancelled.

        Raises:
            LoaderTimeout: the hard limit passed. Otherwise only what the loader raises.
        """
        slot = self._slot(
            agent_id,
            scope,
            organisation,
            model,
            ttl_s=ttl_s,
            keep_s=stale_if_error_s,
            dependencies=checked_dependencies(depends_on),
        )
        hard_s = self._options.loader_timeout_s if loader_timeout_s is None else loader_timeout_s
        call = LoadOptions(stale_if_error_s, soft_timeout_s, hard_s)
        return await self._get_or_load(slot, loader, call)

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
        Store a state, over any load under way. False when not stored: then nothing is.

        Of two writers that commit and then set, the later set wins, not the later commit:
        after a write of one's own, `invalidate` is the safe call.

        Raises:
            NotEncodable: something inside has no safe encoding.
        """
        dependencies = checked_dependencies(depends_on)
        slot = self._slot(agent_id, scope, organisation, ttl_s=ttl_s, dependencies=dependencies)
        return await self._set(slot, value)

    async def get_many(
        self,
        agent_ids: Iterable[str],
        *,
        scope: str = "",
        organisation: str | None = None,
        model: type[BaseModel] | None = None,
    ) -> dict[str, Any]:
        """The hits among many agents by id, read in as few writes as they fit in."""
        ids = list(dict.fromkeys(checked_agent_ids(agent_ids)))
        hits: dict[str, Any] = {}
        for start in range(0, len(ids), _READ_AT_ONCE):
            chunk = ids[start : start + _READ_AT_ONCE]
            reads = [
                self.get(i, scope=scope, organisation=organisation, model=model) for i in chunk
            ]
            values = await asyncio.gather(*reads)
            hits |= {i: v for i, v in zip(chunk, values, strict=True) if v is not None}
        return hits

    async def lease(
        self, agent_id: str, *, scope: str = "", organisation: str | None = None
    ) -> Lease | None:
        """
        The right to `fill` one state, for loaders of one's own. None while another holds it,
        a fresh value is there, or the server is away.
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
    ) -> bool:
        """Store what was loaded under a lease; False when something was invalidated since."""
        slot = self._slot(agent_id, scope, organisation, ttl_s=ttl_s)
        try:
            return await slot.store(lease, value) > 0
        except Away:
            return False

    async def invalidate(self, *agent_ids: str) -> bool:
        """
        Forget agents: every scope, block and context.

        After it returned True, no process is served anything older, neither from Redis nor by
        a loader that read before (copies inside other processes: within `cache_local_ttl_s`).
        With the server away that takes up to `cache_member_lease_s`, once: then nobody trusts
        what was stored before. It is queued, too, and this process goes to its loaders until
        it is delivered.

        False: the outage is older than that, so another process that reaches the server may be
        served older values until it is delivered, which `Cache.settled` waits for.
        """
        keys = [self._components.keys.agent(agent_id) for agent_id in checked_agent_ids(agent_ids)]
        if not keys or not self._options.enabled:
            return True
        return await self._components.invalidation.entries(keys)

    async def invalidate_dependency(self, *names: str) -> bool:
        """Forget every agent whose value was stored with one of these in `depends_on`."""
        found = checked_names("names", names)
        if not self._options.enabled:
            return True
        return await self._components.invalidation.dependencies(found)

    async def invalidate_tag(self, *tags: str) -> bool:
        """Forget every agent that depends on `tag:<tag>`."""
        found = checked_names("tags", tags, longest=MAX_NAME - len("tag:"))
        return await self.invalidate_dependency(*(f"tag:{tag}" for tag in found))

    async def invalidate_organisation(self, *organisations: str) -> bool:
        """Forget every value read and stored with one of these as `organisation`, at once."""
        found = checked_names("organisations", organisations)
        if not self._options.enabled:
            return True
        return await self._components.invalidation.organisations(found)

    async def warm(
        self,
        agent_ids: Iterable[str],
        loader: Callable[[str], Awaitable[Any]],
        *,
        scope: str = "",
        at_once: int = _WARM_AT_ONCE,
    ) -> dict[str, int]:
        """
        Load what is missing, at most `at_once` together. Counts of `warmed` and `failed`.

        A loader that fails is counted, not raised: the others go on.
        """
        ids = list(dict.fromkeys(checked_agent_ids(agent_ids)))
        check_scope(scope)
        gate = asyncio.Semaphore(at_once)

        async def one(agent_id: str) -> None:
            async with gate:
                await self.get_or_load(agent_id, lambda: loader(agent_id), scope=scope)

        done = await asyncio.gather(*(one(i) for i in ids), return_exceptions=True)
        failed = sum(isinstance(outcome, Exception) for outcome in done)
        return {"warmed": len(ids) - failed, "failed": failed}

    async def stats(
        self, agent_id: str, *, scope: str = "", organisation: str | None = None
    ) -> dict[str, Any]:
        """
        One agent: `hits`, `misses`, `loads` of this process, over all scopes; `bytes` and
        `ttl_s` of this scope's stored state, 0 without one, None while the server is away.
        """
        slot = self._slot(agent_id, scope, organisation)
        counted = self._components.per_agent.of(agent_id)
        key = value_key(slot.key, slot.field)
        size: int | None = None
        ttl_s: float | None = None
        try:
            connection = self._components.entries.connection
            size, left_ms = await connection.execute_many((("STRLEN", key), ("PTTL", key)))
            ttl_s = max(left_ms, 0) / 1000
        except Away:
            self._components.counters.bypassed += 1
        return {
            "hits": counted.hits, "misses": counted.misses, "loads": counted.loads,
            "bytes": size, "ttl_s": ttl_s,
        }  # fmt: skip
