"""Compares what reads of agents through the cache return with what the database holds."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

from letta.errors import LettaAgentNotFoundError
from letta.orm.errors import NoResultFound
from letta.orm.message import Message
from letta.server.db import db_registry
from letta.services.agent_manager import AgentManager
from letta.services.message_manager import MessageManager
from sqlalchemy import select

LOOP = [
    "memory",
    "multi_agent_group",
    "sources",
    "tool_exec_environment_variables",
    "tools",
    "tags",
]
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {"include_relationships": None},
    "none": {"include_relationships": []},
    "loop": {"include_relationships": LOOP},
    "names": {"include": ["agent.blocks", "agent.identities", "agent.managed_group", "agent.tags"]},
}
# What a read leaves empty because its includes do not name it.
_ABSENT: dict[str, set[str]] = {
    "all": set(),
    "none": {"memory", "blocks", "tools", "sources", "tags", "identities", "identity_ids",
             "multi_agent_group", "managed_group", "secrets", "tool_exec_environment_variables"},
    "loop": {"identities", "identity_ids"},
    "names": {"tools", "sources", "secrets", "tool_exec_environment_variables"},
}  # fmt: skip
_UNORDERED = {
    "blocks", "file_blocks", "identities", "identity_ids", "secrets", "sources", "tags",
    "tool_exec_environment_variables", "tools",
}  # fmt: skip


class Reads:
    """Reads agents by the plug-in's replaced method, and by Letta's own."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._manager = AgentManager()
        self._own = AgentManager.get_agent_by_id_async.__wrapped__
        self._messages = MessageManager()
        self._own_messages = MessageManager.get_messages_by_ids_async.__wrapped__
        self._own_list = MessageManager.list_messages.__wrapped__

    async def database(self, agent_id: str, actor: Any, variant: str = "all") -> Any:
        """The state as plain data, or None where there is no such agent."""
        return await _plain(self._own(self._manager, agent_id, actor, **VARIANTS[variant]))

    async def cached(self, agent_id: str, actor: Any, variant: str = "all") -> tuple[Any, bool]:
        """As `database`, and whether it came from the cache."""
        loads = self._cache.stats()["loads"]
        read = self._manager.get_agent_by_id_async(agent_id, actor, **VARIANTS[variant])
        return await _plain(read), self._cache.stats()["loads"] == loads

    async def messages(self, ids: list[str], actor: Any) -> tuple[list[Any], list[Any], int]:
        """Messages by the cache, by the database, and how many of them were hits."""
        loads = self._cache.stats()["loads"]
        cached = await self._messages.get_messages_by_ids_async(ids, actor)
        hits = len(cached) - (self._cache.stats()["loads"] - loads)
        own = await self._own_messages(self._messages, ids, actor)
        dumped = [[json.loads(each.model_dump_json()) for each in found] for found in (cached, own)]
        return dumped[0], dumped[1], max(hits, 0)

    async def newest(self, agent_id: str, actor: Any) -> tuple[list[Any], bool]:
        """The newest messages by the cache, and whether its window came from there."""
        loads = self._cache.stats()["loads"]
        read = self._messages.list_messages(actor=actor, agent_id=agent_id, ascending=False)
        found = await _plain_list(read)
        return found, self._cache.stats()["loads"] == loads

    async def newest_of_database(self, agent_id: str, actor: Any) -> list[Any]:
        read = self._own_list(self._messages, actor=actor, agent_id=agent_id, ascending=False)
        return await _plain_list(read)


class Audit:
    """
    Reads every known agent in every variant, by the cache and from the database.

    Attributes:
        agents: by id, an actor who may read it.
        comparisons: hits that were compared.
        messages: hits of messages that were compared.
        windows: hits of lists of the newest messages that were compared.
        stale: one line for each that differs.
    """

    def __init__(self, reads: Reads) -> None:
        self.reads = reads
        self.agents: dict[str, Any] = {}
        self.comparisons = self.messages = self.windows = 0
        self._known: dict[str, Any] = {}  # messages that existed, with an actor
        self.stale: list[str] = []

    async def check(self, after: str) -> None:
        for agent_id, actor in list(self.agents.items()):
            hits = {}
            for variant in VARIANTS:
                cached, hit = await self.reads.cached(agent_id, actor, variant)
                if hit:
                    hits[variant] = cached
            if hits:
                self._compare(agent_id, hits, await self.reads.database(agent_id, actor), after)
            await self._check_window(agent_id, actor, after)
        await self._check_messages(after)

    async def _check_window(self, agent_id: str, actor: Any, after: str) -> None:
        cached, hit = await self.reads.newest(agent_id, actor)
        if hit and cached:
            self.windows += 1
            fresh = await self.reads.newest_of_database(agent_id, actor)
            if cached != fresh:
                self.stale.append(f"{after}: {agent_id} newest: {_first_difference(cached, fresh)}")

    async def _check_messages(self, after: str) -> None:
        """Each message that was ever seen, of all agents of the actors."""
        actors = {actor.organization_id: actor for actor in self.agents.values()}
        async with db_registry.async_session() as session:
            query = select(Message.id, Message.organization_id)
            rows = await session.execute(query.where(Message.organization_id.in_(actors)))
            self._known |= {row.id: actors[row.organization_id] for row in rows}
        for actor in actors.values():
            ids = [each for each, by in self._known.items() if by is actor]
            if ids:
                cached, fresh, hits = await self.reads.messages(ids, actor)
                self.messages += hits
                if cached != fresh:
                    self.stale.append(f"{after}: {_first_difference(cached, fresh)}")

    def _compare(self, agent_id: str, hits: dict[str, Any], fresh: Any, after: str) -> None:
        for variant, cached in hits.items():
            self.comparisons += 1
            wrong = _difference(cached, fresh, _ABSENT[variant])
            if wrong:
                self.stale.append(f"{after}: {agent_id} {variant}: {wrong}")


async def _plain(read: Awaitable[Any]) -> Any:
    try:
        state = await read
    except NoResultFound:
        return None
    return plain(json.loads(state.model_dump_json()))


async def _plain_list(read: Awaitable[list[Any]]) -> list[Any]:
    try:
        return [json.loads(each.model_dump_json()) for each in await read]
    except (NoResultFound, LettaAgentNotFoundError):
        return []


def plain(value: Any, field: str = "") -> Any:
    """Without what each read draws anew, and in an order of its own."""
    if isinstance(value, dict):
        drop = {"id"} if field == "file_blocks" else set()
        return {key: plain(one, key) for key, one in value.items() if key not in drop}
    if isinstance(value, list):
        items = [plain(one, field) for one in value]
        return sorted(items, key=json.dumps) if field in _UNORDERED else items
    return value


def _difference(cached: Any, fresh: Any, absent: set[str]) -> str:
    if fresh is None:
        return "" if cached is None else "is gone"
    return ", ".join(key for key in fresh if key not in absent and cached.get(key) != fresh[key])


def _first_difference(cached: list[Any], fresh: list[Any]) -> str:
    by_id = {each["id"]: each for each in fresh}
    for message in cached:
        if message != by_id.get(message["id"]):
            return f"{message} is {by_id.get(message['id'])}"
    return f"{len(cached)} messages are {len(fresh)}"
