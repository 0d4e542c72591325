"""
Caches agents: their states by scope, memory blocks and compiled contexts; keeps their sessions.

All but the sessions belong to the agent's entry, so one `invalidate` forgets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from cache.agent_changes import AgentChanges
from cache.coherence.flight import LoadOptions
from cache.coherence.results import value_key
from cache.components import Components, Dependencies
from cache.connection.protocol import Away
from cache.names import check_name, check_scope, checked_agent_ids
from cache.sessions import Sessions
from cache.values import AT_ONCE, NamedValues, checked_dependencies

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")

_WARM_AT_ONCE = 8


class AgentStateCache(AgentChanges):
    """`cache.agents`. Values are plain data, bytes or models. An outage is a miss, never an error."""

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

        Reads `lc:{id}` and `lc:{id}:state:{scope}` (docs/keys.md) by one MGET. A value of another
        schema version, of another run of the server, or altered, is a miss.

        Args:
            scope: the variant. Each scope has its own value; `invalidate` forgets all of them.
            organisation: the owner, for `invalidate_organisation`. It is part of the key.
            model: the pydantic class to decode as. Default: the class of that name that this
                process has stored, or a miss if it has stored none.
        """
        if organisation is None and self._components.local is not None:
            # A local copy is found without a slot, as _get would find it. Names are not checked
            # yet, but there is no copy under an invalid name.
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
        loader: Callable[[], Awaitable[T]],
        *,
        scope: str = "",
        ttl_s: float | None = None,
        organisation: str | None = None,
        depends_on: Dependencies = (),
        model: type[BaseModel] | None = None,
        stale_if_error_s: float = 0.0,
        soft_timeout_s: float | None = None,
        loader_timeout_s: float | None = None,
        refill: bool | Callable[[], bool] = False,
    ) -> T:
        """
        Return an agent's state from the cache, or else from `loader`, and store it.

        One process runs the loader; the others get its answer. What the loader read before an
        invalidation is not stored, and no caller that came after the invalidation gets it. None
        is stored too, for the negative TTL.

        Args:
            ttl_s: TTL of the value in seconds, less jitter. Default: LETTA_CACHE_AGENT_TTL_S.
            depends_on: names such as `block:b1` or `tag:t`, or a function of the value that
                returns them, for `invalidate_dependency`.
            stale_if_error_s: if the loader fails, serve a value that expired at most this long
                ago.
            soft_timeout_s: if there is such a value, serve it after waiting this long for the
                loader. The loader goes on.
            loader_timeout_s: the loader is canceled after this. Default:
                LETTA_CACHE_LOADER_TIMEOUT_S.
            refill: after this process has invalidated the agent, run the loader again in the
                background, so that the next read hits. The loader must work without its caller.
                At most three times for each read of the state. A function is asked after each
                invalidation.

        Raises:
            LoaderTimeout: the loader was canceled. Otherwise only what the loader raises.
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
        if refill and self._options.enabled:
            wanted = refill if callable(refill) else None
            self._components.refills.remember(slot, loader, call, wanted)
        value: T = await self._get_or_load(slot, loader, call)
        return value

    async def get_many(
        self,
        agent_ids: Iterable[str],
        *,
        scope: str = "",
        organisation: str | None = None,
        model: type[BaseModel] | None = None,
    ) -> dict[str, Any]:
        """The hits among many agents, by id. Reads a hundred agents per write."""
        ids = list(dict.fromkeys(checked_agent_ids(agent_ids)))
        hits: dict[str, Any] = {}
        for start in range(0, len(ids), AT_ONCE):
            chunk = ids[start : start + AT_ONCE]
            reads = [
                self.get(i, scope=scope, organisation=organisation, model=model) for i in chunk
            ]
            values = await asyncio.gather(*reads)
            hits |= {i: v for i, v in zip(chunk, values, strict=True) if v is not None}
        return hits

    async def get_or_load_many(
        self,
        agent_ids: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, T]]],
        *,
        scope: str = "",
        ttl_s: float | None = None,
        organisation: str | None = None,
        depends_on: Dependencies = (),
        model: type[BaseModel] | None = None,
        loader_timeout_s: float | None = None,
    ) -> dict[str, T]:
        """
        Return the states of many agents, by id, from the cache or else from one call of `loader`.

        The loader gets the ids that are missing, at most 100 at a time, and returns their values.
        An id that it does not return is absent from the result too, and nothing is stored for it.
        Each state is loaded and stored as by `get_or_load`: one that another caller or process is
        loading is waited for, and what was invalidated meanwhile is not stored.

        Args:
            depends_on: as for `get_or_load`; a function of the value names what each agent needs.

        Raises:
            LoaderTimeout: the loader was canceled. Otherwise only what the loader raises.
        """
        ids = list(dict.fromkeys(checked_agent_ids(agent_ids)))
        names = checked_dependencies(depends_on)
        slots = {
            i: self._slot(i, scope, organisation, model, ttl_s=ttl_s, dependencies=names)
            for i in ids
        }
        hard_s = self._options.loader_timeout_s if loader_timeout_s is None else loader_timeout_s
        return await self._get_or_load_many(slots, loader, LoadOptions(hard_timeout_s=hard_s))

    async def warm(
        self,
        agent_ids: Iterable[str],
        loader: Callable[[str], Awaitable[Any]],
        *,
        scope: str = "",
        organisation: str | None = None,
        depends_on: Dependencies = (),
        at_once: int = _WARM_AT_ONCE,
    ) -> dict[str, int]:
        """
        Load missing states, at most `at_once` at a time. Returns counts of `warmed` and `failed`.

        A loader's error is counted, not raised.

        Args:
            depends_on: as for `get_or_load`; a function of the value names what each agent needs.
        """
        ids = list(dict.fromkeys(checked_agent_ids(agent_ids)))
        check_scope(scope)
        if organisation is not None:
            check_name("organisation", organisation)
        names = checked_dependencies(depends_on)
        gate = asyncio.Semaphore(at_once)

        async def one(agent_id: str) -> None:
            async with gate:
                await self.get_or_load(
                    agent_id,
                    lambda: loader(agent_id),
                    scope=scope,
                    organisation=organisation,
                    depends_on=names,
                )

        done = await asyncio.gather(*(one(i) for i in ids), return_exceptions=True)
        failed = sum(isinstance(outcome, Exception) for outcome in done)
        return {"warmed": len(ids) - failed, "failed": failed}

    async def stats(
        self, agent_id: str, *, scope: str = "", organisation: str | None = None
    ) -> dict[str, Any]:
        """
        Statistics of one agent.

        `hits`, `misses` and `loads` count this process, over all scopes. `bytes` and `ttl_s`
        are of this scope's stored state: 0 if there is none, None while the server is away.
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
