"""A read returns what the database would, whichever parts of the agent it asks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from letta_redis.plugin.includes import PARTS
from letta_redis.plugin.install import Installation
from tests.letta.agents import Agents, counted_sql

pytestmark = pytest.mark.acceptance

LEGACY = sorted({name for part in PARTS.values() for name in part.relationships} | {"blocks"})
NEW = sorted(part.include for part in PARTS.values())


def subsets(names: list[str], sizes: Iterable[int]) -> Iterator[list[str]]:
    for size in sizes:
        yield from map(list, itertools.combinations(names, size))


def shown(state: Any) -> dict[str, Any]:
    """
    A state as a dict, to compare.

    Without the ids that Letta draws anew at every read, and with sorted lists: the database
    returns the rows of a relationship in any order.
    """
    found: dict[str, Any] = state.model_dump(mode="json")
    for block in found["memory"]["file_blocks"]:
        del block["id"]
    for place in (found, found["memory"]):
        for name, value in place.items():
            if isinstance(value, list):
                place[name] = sorted(value, key=repr)
    return found


async def furnished(agents: Agents) -> Any:
    """An agent with something in every part."""
    from letta.orm.agents_tags import AgentsTags
    from letta.schemas.file import FileMetadata
    from letta.schemas.group import GroupCreate, SupervisorManager
    from letta.schemas.identity import IdentityCreate
    from letta.schemas.source import Source
    from letta.server.db import db_registry
    from letta.services.file_manager import FileManager
    from letta.services.files_agents_manager import FileAgentManager
    from letta.services.group_manager import GroupManager
    from letta.services.identity_manager import IdentityManager
    from letta.services.source_manager import SourceManager

    user = agents.user
    agent, other = await agents.create(secrets={"A": "a secret"}), await agents.create()
    embedding = agent.__dict__["embedding_config"]
    source = await SourceManager().create_source(
        Source(name=f"of {agent.id}", embedding_config=embedding), actor=user
    )
    await agents.manager.attach_source_async(agent_id=agent.id, source_id=source.id, actor=user)
    file = await FileManager().create_file(
        FileMetadata(source_id=source.id, file_name="a file"), actor=user, text="its text"
    )
    await FileAgentManager().attach_file(
        agent_id=agent.id, file_id=file.id, file_name="a file", source_id=source.id,
        actor=user, max_files_open=5, visible_content="its text",
    )  # fmt: skip
    identity = IdentityCreate(
        identifier_key=agent.id, name="somebody", identity_type="user", agent_ids=[agent.id]
    )
    await IdentityManager().create_identity_async(identity, actor=user)
    config = SupervisorManager(manager_agent_id=agent.id)
    group = GroupCreate(agent_ids=[other.id], description="a group", manager_config=config)
    await GroupManager().create_group_async(group, actor=user)
    async with db_registry.async_session() as session:
        session.add(AgentsTags(agent_id=agent.id, tag="git-memory-enabled"))
    return agent


async def test_every_combination_of_parts_is_what_the_database_has(
    agents: Agents, plugin: Installation, cache: Any
) -> None:
    agent, manager = await furnished(agents), agents.manager
    reads: list[dict[str, Any]] = [
        *({"include": include} for include in subsets(NEW, range(8))),
        *({"include_relationships": names} for names in subsets(LEGACY, range(3))),
        {"include_relationships": LEGACY},
        {"include_relationships": ["memory"], "include": ["agent.tools"]},
        {"include_relationships": None},
    ]
    plugin.runtime.collects_changes = False
    expected = [
        shown(await manager.get_agent_by_id_async(agent.id, agents.user, **read)) for read in reads
    ]
    assert expected[-1]["memory"]["git_enabled"]
    assert all(expected[-1][name] for part in PARTS.values() for name in part.absent)

    plugin.runtime.collects_changes = True
    await cache.invalidate(agents=[agent.id])
    for _ in "loaded", "from entries of their own":
        for read, wanted in zip(reads, expected, strict=True):
            if read.get("include_relationships", []) is not None:  # all parts come last
                state = await manager.get_agent_by_id_async(agent.id, agents.user, **read)
                assert shown(state) == wanted, read
    await manager.get_agent_by_id_async(agent.id, agents.user)
    with counted_sql() as statements:
        for read, wanted in zip(reads, expected, strict=True):
            state = await manager.get_agent_by_id_async(agent.id, agents.user, **read)
            assert shown(state) == wanted, read
    assert statements == []


async def test_agents_by_ids_are_what_the_database_has(
    agents: Agents, plugin: Installation
) -> None:
    agent, other = await furnished(agents), await agents.create()
    ids = [other.id, agent.id, other.id, "agent-00000000-0000-4000-8000-000000000000"]
    plugin.runtime.collects_changes = False
    expected = {
        state.id: shown(state)
        for state in await agents.manager.get_agents_by_ids_async(ids, agents.user)
    }

    plugin.runtime.collects_changes = True
    await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    for _ in "one is loaded", "both are cached":
        states = await agents.manager.get_agents_by_ids_async(ids, agents.user)
        assert [state.id for state in states] == [other.id, agent.id]
        for state in states:
            found, wanted = shown(state), expected[state.id]
            assert {k: (v, wanted[k]) for k, v in found.items() if v != wanted[k]} == {}
    with counted_sql() as statements:
        await agents.manager.get_agents_by_ids_async(ids[:3], agents.user)
    assert statements == []


async def test_a_pending_approval_is_never_cached(agents: Agents, plugin: Installation) -> None:
    agent = await agents.create()
    read = {"include": ["agent.pending_approval", "agent.tools"]}
    await agents.manager.get_agent_by_id_async(agent.id, agents.user, **read)

    with counted_sql() as statements:
        await agents.manager.get_agent_by_id_async(agent.id, agents.user, **read)

    assert statements


async def test_wrong_arguments_fail_as_without_the_plugin(
    agents: Agents, plugin: Installation
) -> None:
    for wrong in (
        {"agent_id": 1}, {"agent_id": "{}"}, {"actor": None},
        {"include": None}, {"include": "agent.tools"}, {"include_relationships": ""},
    ):  # fmt: skip
        arguments: dict[str, Any] = {"agent_id": "agent-1", "actor": agents.user, **wrong}
        raised = []
        for collects in (False, True):
            plugin.runtime.collects_changes = collects
            with pytest.raises(Exception) as error:  # noqa: PT011  (whatever Letta raises)
                await agents.manager.get_agent_by_id_async(**arguments)
            raised.append((error.type, str(error.value)))
        assert raised[0] == raised[1]
