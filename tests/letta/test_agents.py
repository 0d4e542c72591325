"""Agents are read through the cache inside the Letta server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.letta.agents import Agents, counted_sql

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


async def test_what_was_invalidated_is_read_again(agents: Agents, cache: Any) -> None:
    from letta.schemas.block import BlockUpdate
    from letta.services.block_manager import BlockManager

    agent = await agents.create()
    before = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    block = before.blocks[0]
    await BlockManager().update_block_async(block.id, BlockUpdate(value="new"), agents.user)

    await cache.invalidate(dependencies=[block.id])

    after = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    assert next(each.value for each in after.blocks if each.id == block.id) == "new"
