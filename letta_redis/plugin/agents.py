"""
Reads agents through the cache.

What is cached is the state as JSON, before its secrets are decrypted. Each caller
decodes a state of its own, because Letta's agent loop changes the one that it gets.
A narrow read takes the full state if it is cached, and cuts it down.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from cache.logs import get_logger
from letta_redis.plugin import states
from letta_redis.plugin.includes import ALL, cut, parts_of, rows_in, scope_of
from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Seam

if TYPE_CHECKING:
    from cache.service import Cache

log = get_logger("letta_redis")

Load = Callable[[], Awaitable[Any]]

# Never cached: it changes with the agent's messages.
_PENDING_APPROVAL = "agent.pending_approval"
_NOTHING: list[str] = []
_MODULE = "letta.services.agent_manager"


def _reading_one(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def get_agent_by_id_async(
        self: Any,
        agent_id: Any,
        actor: Any,
        include_relationships: Any = None,
        include: Any = _NOTHING,
    ) -> Any:
        load = partial(
            original, self, agent_id, actor,
            include_relationships=include_relationships, include=include,
        )  # fmt: skip
        cache = runtime.cache_to_read()
        if (
            cache is None
            or not _is_plain([agent_id], actor, include_relationships, include)
            or _PENDING_APPROVAL in include
        ):
            return await load()
        reads = _Reads(cache, actor.organization_id, parts_of(include_relationships, include))
        return await reads.one(agent_id, load)

    return get_agent_by_id_async


def _reading_many(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def get_agents_by_ids_async(
        self: Any, agent_ids: Any, actor: Any, include_relationships: Any = None
    ) -> Any:
        def load(ids: Any) -> Any:
            return original(self, ids, actor, include_relationships=include_relationships)

        cache = runtime.cache_to_read()
        if cache is None or not _is_plain(agent_ids, actor, include_relationships, ()):
            return await load(agent_ids)
        reads = _Reads(cache, actor.organization_id, parts_of(include_relationships, ()))
        found = await reads.many(agent_ids)
        missing = [agent_id for agent_id in agent_ids if agent_id not in found]
        if missing or not agent_ids:
            found |= {state.id: state for state in await load(missing)}
        return [found[agent_id] for agent_id in dict.fromkeys(agent_ids) if agent_id in found]

    return get_agents_by_ids_async


def _is_plain(agent_ids: Any, actor: Any, relationships: Any, include: Any) -> bool:
    """Whether these are arguments as Letta's own callers pass them. It refuses others by itself."""
    lists = (agent_ids, relationships or [], list(include))
    return (
        isinstance(getattr(actor, "organization_id", None), str)
        and all(isinstance(each, list) for each in lists)
        and all(isinstance(name, str) for each in lists for name in each)
    )


class _LoadFailed(Exception):
    """What Letta's own read raised, on its way through the cache."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(repr(cause))
        self.cause = cause


class _Loading:
    """Letta's own read, as a loader of the cache. Keeps the state for the caller that it belongs to."""

    def __init__(self, load: Load, *, sealed: bool) -> None:
        self._load = load
        self._sealed = sealed
        self.data: bytes | None = None
        self.state: Any = None
        self.failed: _LoadFailed | None = None

    async def __call__(self) -> bytes:
        try:
            with states.left_encrypted():
                state = await self._load()
            data = await states.encode(state, sealed=self._sealed)
        except Exception as exc:  # noqa: BLE001  (told apart from errors of the cache)
            self.failed = _LoadFailed(exc)
            raise self.failed from None
        self.data, self.state = data, state
        return data


class _Reads:
    """Reads of one organization's agents, with these parts."""

    def __init__(self, cache: Cache, organisation: str, parts: frozenset[str]) -> None:
        import letta

        self._cache = cache
        self._organisation = organisation
        self._parts = parts
        self._full, self._own = (scope_of(each, letta.__version__) for each in (ALL, parts))

    async def one(self, agent_id: str, load: Load) -> Any:
        """The agent's state, from the cache or else from `load`. Raises what `load` raises."""
        loading = _Loading(load, sealed=self._cache.options.keyring is not None)
        try:
            data = await self._read(agent_id, loading)
            if data is loading.data:
                return loading.state
            if data != states.NOT_CACHED:
                return await states.decode(data)
        except _LoadFailed:
            pass  # ours is raised below; after another caller's, we read ourselves
        except Exception:
            log.exception("letta.cache_read_failed", agent_id=agent_id)
        if loading.failed is not None:
            raise loading.failed.cause
        return await load()

    async def many(self, agent_ids: list[str]) -> dict[str, Any]:
        """The states that are cached, by id."""
        found: dict[str, Any] = {}
        try:
            for scope in dict.fromkeys((self._full, self._own)):
                left = [agent_id for agent_id in agent_ids if agent_id not in found]
                hits = await self._cache.agents.get_many(
                    left, scope=scope, organisation=self._organisation
                )
                for agent_id, data in hits.items():
                    if data != states.NOT_CACHED:
                        found[agent_id] = await states.decode(self._cut(scope, data))
        except Exception:
            log.exception("letta.cache_read_failed", agents=len(agent_ids))
        return found

    async def _read(self, agent_id: str, load: _Loading) -> bytes:
        agents, organisation = self._cache.agents, self._organisation
        if self._own != self._full:
            full = await agents.get(agent_id, scope=self._full, organisation=organisation)
            if full:
                return self._cut(self._full, full)
        return await agents.get_or_load(
            agent_id, load, scope=self._own, organisation=organisation, depends_on=rows_in
        )

    def _cut(self, scope: str, data: bytes) -> bytes:
        return data if scope == self._own else cut(data, self._parts)


def _skipping(_runtime: Runtime, original: Any) -> Any:
    return states.skipping(original)


FEATURE = Feature(
    "agents",
    "cache",
    (
        Seam(
            f"{_MODULE}:AgentManager.get_agent_by_id_async",
            "reads an agent through the cache",
            "(self, agent_id, actor, include_relationships=None, include=[])",
            digests=("707689f4ae129e8b",),
            replace=_reading_one,
        ),
        Seam(
            f"{_MODULE}:AgentManager.get_agents_by_ids_async",
            "reads agents through the cache",
            "(self, agent_ids, actor, include_relationships=None)",
            digests=("276eb6e38da3c491",),
            replace=_reading_many,
        ),
        Seam(
            f"{_MODULE}:decrypt_agent_secrets",
            "is left out when a state is loaded for the cache",
            "(agents)",
            digests=("17dc158e396a380d",),
            replace=_skipping,
        ),
        Seam(
            "letta.orm.agent:Agent.to_pydantic_async",
            "makes the state that is cached",
            "(self, include_relationships=None, include=None, decrypt=True)",
            digests=("05ff49a96a660e43",),
        ),
        Seam(
            "letta.services.helpers.agent_manager_helper:_apply_relationship_filters",
            "says what a read loads",
            "(query, include_relationships=None, include=None)",
            digests=("cf8a4b2b62880e40",),
        ),
        Seam(
            "letta.services.helpers.agent_manager_helper:get_column_names_from_includes_params",
            "says what a read loads",
            "(include_relationships=None, includes=None)",
            digests=("84d8806d1d262b92",),
        ),
        Seam(
            "letta.orm.sqlalchemy_base:SqlalchemyBase.apply_access_predicate",
            "says who may read an agent: its organization",
            "(query, actor, access, access_type=<AccessType.ORGANIZATION: 'organization'>)",
            digests=("73cfa801167f4ef2",),
        ),
        Seam(
            "letta.schemas.agent:AgentState",
            "is what is cached",
            None,
            digests=("e54f5e2995adbaf7",),
        ),
        Seam(
            "letta.schemas.memory:Memory",
            "is the part of a state that is cut",
            None,
            digests=("4d4853af28eac893",),
        ),
        Seam(
            "letta.schemas.secret:Secret",
            "keeps secrets encrypted in what is cached",
            None,
            digests=("563868664b546e0b",),
        ),
    ),
)
