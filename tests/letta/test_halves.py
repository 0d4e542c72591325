"""Tests that the cache and the queue work, each while the other is off, and while it is switched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from letta_redis import install, uninstall
from letta_redis.plugin.install import Installation
from letta_redis.plugin.switches import SWITCHES, switch
from settings import Settings
from tests.letta.agents import Agents, counted_sql
from tests.letta.test_callbacks import end_run, ended, new_run
from tests.letta.workers import receiver, workers
from tests.support.wait import eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("worker")]

HALVES = list(SWITCHES)


@pytest.fixture(scope="module")
def worker(valkey_url: str) -> Iterator[None]:
    with workers(valkey_url, webhook_max_attempts="1"):
        yield


@asynccontextmanager
async def installed(settings: Settings) -> AsyncIterator[Installation]:
    installation = install(settings)
    await installation.runtime.start()
    try:
        yield installation
    finally:
        await installation.runtime.stop()
        uninstall()


async def is_cached(agents: Agents) -> bool:
    """Whether the second read of an agent runs no SQL."""
    agent = await agents.create()
    first = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    with counted_sql() as statements:
        second = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
    assert second.model_dump() == first.model_dump()
    return not statements


async def is_queued(agents: Agents) -> bool:
    """Whether the callback of a run comes from the workers: only theirs has an id."""
    async with receiver() as hook:
        run = await new_run(agents, hook.url)
        await end_run(agents, run)
        assert await ended(run.id) == (200, None)
        (id_,) = hook.ids()
        assert id_ in ("", f"{run.id}:completed")
        return id_ != ""


async def working(agents: Agents) -> dict[str, bool]:
    return {"agent_cache": await is_cached(agents), "redis_queue": await is_queued(agents)}


@pytest.mark.parametrize("off", HALVES)
async def test_each_half_works_while_a_setting_leaves_one_off(
    agents: Agents, valkey_url: str, off: str
) -> None:
    given = Settings(redis_url=valkey_url).model_copy(update={SWITCHES[off]: False})
    async with installed(given):
        assert await working(agents) == {name: name != off for name in HALVES}


@pytest.mark.parametrize("off", HALVES)
async def test_each_half_works_while_the_other_is_switched(
    agents: Agents, plugin: Installation, valkey_url: str, off: str
) -> None:
    """By the key in the server, then by the environment, and on again."""
    switches, settings = plugin.runtime.switches, Settings(redis_url=valkey_url)
    both = dict.fromkeys(HALVES, True)

    async def follows(on: bool) -> None:
        async def as_wanted() -> bool:
            return getattr(switches, off) is on

        await eventually(as_wanted, deadline_s=60)
        assert await working(agents) == {**both, off: on}

    await switch(settings, off, "off")
    await follows(on=False)
    await switch(settings, off, "default")
    await follows(on=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(f"LETTA_{SWITCHES[off].upper()}", "false")
        await follows(on=False)
    await follows(on=True)
