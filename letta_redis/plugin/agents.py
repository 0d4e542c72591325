"""Puts the cache in front of the two methods that read agents."""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

from letta_redis.plugin import states
from letta_redis.plugin.includes import parts_of
from letta_redis.plugin.reads import Reads
from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Seam

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
        parts = parts_of(include_relationships, include)
        reads = Reads(cache, runtime.runs, actor.organization_id, parts)
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
        if (
            cache is None
            or not agent_ids
            or not _is_plain(agent_ids, actor, include_relationships, _NOTHING)
        ):
            return await load(agent_ids)
        parts = parts_of(include_relationships, _NOTHING)
        reads = Reads(cache, runtime.runs, actor.organization_id, parts)
        return await reads.many(agent_ids, load)

    return get_agents_by_ids_async


def _is_plain(agent_ids: Any, actor: Any, relationships: Any, include: Any) -> bool:
    """Whether Letta's own callers pass such arguments. Letta's method refuses all others."""
    lists = (agent_ids, [] if relationships is None else relationships, include)
    return (
        isinstance(getattr(actor, "organization_id", None), str)
        and all(isinstance(each, list) for each in lists)
        and all(isinstance(name, str) for each in lists for name in each)
    )


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
            "is skipped when a state is loaded for the cache",
            "(agents)",
            digests=("17dc158e396a380d",),
            replace=_skipping,
        ),
        Seam(
            "letta.orm.agent:Agent.to_pydantic_async",
            "builds the state that is cached",
            "(self, include_relationships=None, include=None, decrypt=True)",
            digests=("05ff49a96a660e43",),
        ),
        Seam(
            "letta.services.helpers.agent_manager_helper:_apply_relationship_filters",
            "decides what a read loads",
            "(query, include_relationships=None, include=None)",
            digests=("cf8a4b2b62880e40",),
        ),
        Seam(
            "letta.services.helpers.agent_manager_helper:get_column_names_from_includes_params",
            "decides what a read loads",
            "(include_relationships=None, includes=None)",
            digests=("84d8806d1d262b92",),
        ),
        Seam(
            "letta.orm.sqlalchemy_base:SqlalchemyBase.apply_access_predicate",
            "decides who may read an agent: its organization",
            "(query, actor, access, access_type=<AccessType.ORGANIZATION: 'organization'>)",
            digests=("73cfa801167f4ef2",),
        ),
        Seam(
            "letta.schemas.agent:AgentState",
            "defines what is cached of an agent",
            None,
            digests=("e54f5e2995adbaf7",),
        ),
        Seam(
            "letta.schemas.memory:Memory",
            "defines the part of a state that is cut",
            None,
            digests=("4d4853af28eac893",),
        ),
        Seam(
            "letta.schemas.secret:Secret",
            "keeps secrets encrypted in a cached state",
            None,
            digests=("563868664b546e0b",),
        ),
    ),
)
