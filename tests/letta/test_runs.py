"""A run of an agent loads no more of the agent than it uses."""

from __future__ import annotations

from typing import Any

import pytest

from letta_redis import install, uninstall
from letta_redis.plugin.begun import Runs
from settings import Settings
from tests.letta.agents import Agents, counted_sql
from tests.support.wait import eventually

pytestmark = pytest.mark.acceptance


async def new_run(agents: Agents, agent: Any) -> Any:
    from letta.schemas.run import Run
    from letta.services.run_manager import RunManager

    return await RunManager().create_run(pydantic_run=Run(agent_id=agent.id), actor=agents.user)


async def end_run(agents: Agents, run: Any) -> None:
    from letta.schemas.run import RunUpdate
    from letta.services.run_manager import RunManager

    update = RunUpdate(status="completed", stop_reason="end_turn")
    await RunManager().update_run_by_id_async(run.id, update, actor=agents.user)


async def project_of(run: Any) -> str:
    from letta.orm.run import Run
    from letta.server.db import db_registry
    from sqlalchemy import select

    async with db_registry.async_session() as session:
        found = await session.execute(select(Run.project_id).where(Run.id == run.id))
        return str(found.scalar_one())


async def statements_of_a_run(agents: Agents, agent: Any) -> int:
    with counted_sql() as statements:
        await end_run(agents, await new_run(agents, agent))
    return len(statements)


async def test_a_run_takes_half_of_its_statements(agents: Agents, valkey_url: str) -> None:
    agent = await agents.create()
    without = await statements_of_a_run(agents, agent)
    installation = install(Settings(redis_url=valkey_url))
    await installation.runtime.start()
    try:
        assert await statements_of_a_run(agents, agent) * 2 < without
    finally:
        await installation.runtime.stop()
        uninstall()


@pytest.mark.usefixtures("plugin")
async def test_what_a_run_writes_is_seen_in_full(agents: Agents, cache: Any) -> None:
    from tests.letta.audit import Audit, Reads

    agent = await agents.create(project_id="a-project")
    audit = Audit(Reads(cache))
    audit.agents = {agent.id: agents.user}
    await audit.check("before")
    run = await new_run(agents, agent)
    assert await project_of(run) == agent.project_id
    await audit.check("begun")
    await end_run(agents, run)
    await audit.check("ended")
    await audit.check("ended, again")

    state = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    assert state.last_stop_reason == "end_turn"
    assert len(state.blocks) == 2
    assert audit.stale == []
    assert audit.comparisons > 4


@pytest.mark.usefixtures("plugin")
async def test_an_update_that_is_answered_shows_all(agents: Agents) -> None:
    from letta.schemas.agent import UpdateAgent

    agent = await agents.create()
    update = UpdateAgent(last_stop_reason="end_turn")
    state = await agents.manager.update_agent_async(agent.id, update, agents.user)
    assert (len(state.blocks), state.tags) == (2, ["a tag"])


async def test_an_agent_is_not_loaded_again_while_it_runs(agents: Agents, cache: Any) -> None:
    from letta.schemas.agent import UpdateAgent

    agent = await agents.create()
    await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    before = cache.stats()["refills"]
    run = await new_run(agents, agent)
    update = UpdateAgent(description="while it runs")
    await agents.manager.update_agent_async(agent.id, update, agents.user)
    await end_run(agents, run)

    async def refilled() -> bool:
        return bool(cache.stats()["refills"] > before)

    await eventually(refilled, deadline_s=60)
    assert cache.stats()["refills"] == before + 1


async def test_each_run_but_the_first_finds_its_agent_in_the_cache(
    agents: Agents, cache: Any
) -> None:
    from tests.letta.audit import LOOP

    agent = await agents.create()

    for _ in range(6):
        await agents.manager.get_agent_by_id_async(agent.id, agents.user, LOOP)
        refills = cache.stats()["refills"]
        await end_run(agents, await new_run(agents, agent))

        async def refilled(then: int = refills) -> bool:
            return bool(cache.stats()["refills"] > then)

        await eventually(refilled, deadline_s=60)

    # Those of readers: refills are not counted.
    assert (await cache.agents.stats(agent.id))["loads"] == 1


def test_a_run_that_nobody_ends_is_forgotten() -> None:
    now = [0.0]
    runs = Runs(clock=lambda: now[0])
    runs.begin("run-1", "agent-1")
    assert runs.under_way("agent-1")
    assert not runs.under_way("agent-2")
    now[0] = 61.0
    assert not runs.under_way("agent-1")
