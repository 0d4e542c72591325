"""Agents are read through the cache inside the Letta server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from letta_redis.plugin.install import Installation
from tests.letta.agents import Agents, counted_sql
from tests.support.wait import eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("plugin")]


async def test_a_hit_runs_no_sql(agents: Agents) -> None:
    agent = await agents.create()
    first = await agents.manager.get_agent_by_id_async(agent.id, agents.user)

    with counted_sql() as statements:
        second = await agents.manager.get_agent_by_id_async(agent.id, agents.user)

    assert statements == []
    assert second.model_dump() == first.model_dump()
    assert len(second.tools) > 2


async def test_each_reader_gets_a_state_of_its_own(agents: Agents) -> None:
    agent = await agents.create()

    states = await asyncio.gather(
        *(agents.manager.get_agent_by_id_async(agent.id, agents.user) for _ in range(3))
    )
    for number, state in enumerate(states):
        state.system = str(number)
        state.blocks[0].value = str(number)

    assert [state.system for state in states] == ["0", "1", "2"]
    assert [state.blocks[0].value for state in states] == ["0", "1", "2"]
    later = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    assert later.system == "a system prompt"


async def test_another_organization_gets_the_same_error(agents: Agents) -> None:
    from letta.orm.errors import NoResultFound

    agent = await agents.create()
    await agents.manager.get_agent_by_id_async(agent.id, agents.user)

    with pytest.raises(NoResultFound, match=f"Agent with ID {agent.id} not found"):
        await agents.manager.get_agent_by_id_async(agent.id, agents.stranger)
    assert await agents.manager.get_agents_by_ids_async([agent.id], agents.stranger) == []


async def changed_block(agents: Agents, agent_id: str) -> str:
    """Change a block of the agent, and return its new value."""
    from letta.schemas.block import BlockUpdate
    from letta.services.block_manager import BlockManager

    state = await agents.manager.get_agent_by_id_async(agent_id, agents.user)
    value = f"{state.blocks[0].value}, changed"
    await BlockManager().update_block_async(
        state.blocks[0].id, BlockUpdate(value=value), agents.user
    )
    return value


async def test_the_next_read_sees_a_write(agents: Agents) -> None:
    agent = await agents.create()

    for _ in range(5):
        value = await changed_block(agents, agent.id)
        state = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
        assert value in [block.value for block in state.blocks]


async def test_a_state_is_loaded_again_before_it_is_read(agents: Agents, cache: Any) -> None:
    agent = await agents.create()
    await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    value = await changed_block(agents, agent.id)

    async def is_refilled() -> bool:
        return bool(cache.stats()["refills"] and not cache.components.refills.running)

    await eventually(is_refilled, deadline_s=60)
    with counted_sql() as statements:
        state = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    assert statements == []
    assert value in [block.value for block in state.blocks]


async def test_a_half_that_is_off_reads_from_the_database(
    agents: Agents, plugin: Installation
) -> None:
    agent = await agents.create()
    await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    plugin.runtime.switches.agent_cache = False

    with counted_sql() as statements:
        await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    value = await changed_block(agents, agent.id)
    plugin.runtime.switches.agent_cache = True

    state = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    assert statements
    assert value in [block.value for block in state.blocks]
