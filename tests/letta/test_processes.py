"""Two Letta processes write, one of them dies, and one writes without the plug-in."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from letta_redis import install, uninstall
from letta_redis.plugin.install import Installation
from settings import Settings
from tests.letta.agents import Agents
from tests.letta.postgres import ROOT, Postgres

pytestmark = pytest.mark.acceptance

_DEADLINE_S = 300


@pytest.fixture
async def writer(agents: Agents, valkey_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = os.environ | {"LETTA_REDIS_URL": valkey_url, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", "tests.letta.writer", agents.user.id,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env=environment, cwd=ROOT,
    )  # fmt: skip
    yield process
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def _line(process: asyncio.subprocess.Process, starts: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(_DEADLINE_S):
        while line := (await process.stdout.readline()).decode():
            if line.startswith(starts):
                return line
    raise AssertionError(f"the process ended before it said {starts!r}")


def _order(process: asyncio.subprocess.Process, world: Any, seed: int, writes: int) -> None:
    assert process.stdin is not None
    order = {"seed": seed, "writes": writes, "rows": world.share()}
    process.stdin.write(json.dumps(order).encode() + b"\n")


async def _write(world: Any, writes: int) -> None:
    for _ in range(writes):
        with suppress(Exception):  # names that are taken, rows that are gone
            await world.draw()[1]()


async def test_two_processes_that_write_leave_nothing_stale(
    agents: Agents, cache: Any, writer: asyncio.subprocess.Process
) -> None:
    from tests.letta.audit import Audit, Reads
    from tests.letta.operations import World

    world, audit = World(Random(2), agents.user), Audit(Reads(cache))
    await world.populate()
    await _line(writer, "ready")
    for seed in range(3):
        audit.agents = dict.fromkeys(world.agents, agents.user)
        await audit.check("before")
        _order(writer, world, seed, writes=8)
        await _write(world, 8)
        answer = json.loads(await _line(writer, "{"))
        assert answer["done"] > 0
        world.adopt(answer["rows"])
        audit.agents = dict.fromkeys(world.agents, agents.user)
        await audit.check(f"round {seed}")

    # It dies in the middle of a write.
    _order(writer, world, seed=9, writes=50)
    for _ in range(4):
        await _line(writer, "write")
    writer.kill()
    await writer.wait()
    await audit.check("after the death")
    await audit.check("after the death, again")

    assert audit.stale == []
    assert audit.comparisons > 0


async def test_a_write_without_the_plug_in_is_seen_after_the_ttl(
    agents: Agents, letta: str, database_server: Postgres, valkey_url: str
) -> None:
    from tests.letta.audit import Reads

    installation = install(Settings(redis_url=valkey_url, cache_agent_ttl_s=2))
    await installation.runtime.start()
    try:
        agent = await agents.create()
        reads = Reads(installation.runtime.cache())
        await reads.cached(agent.id, agents.user)
        database_server.execute(f"UPDATE agents SET name = 'raw' WHERE id = '{agent.id}'", letta)

        async with asyncio.timeout(60):
            while (await reads.cached(agent.id, agents.user))[0]["name"] != "raw":
                pass
    finally:
        await installation.runtime.stop()
        uninstall()


async def test_a_write_in_another_event_loop_is_announced(
    agents: Agents, plugin: Installation, cache: Any
) -> None:
    from letta.schemas.block import BlockUpdate
    from letta.services.block_manager import BlockManager

    from tests.letta.audit import Reads

    agent = await agents.create()
    reads = Reads(cache)
    await reads.cached(agent.id, agents.user)
    assert (await reads.cached(agent.id, agents.user))[1]

    def write() -> None:
        block = BlockUpdate(value="from a thread")
        asyncio.run(BlockManager().update_block_async(agent.blocks[0].id, block, agents.user))

    await asyncio.to_thread(write)

    state, _ = await reads.cached(agent.id, agents.user)
    assert state == await reads.database(agent.id, agents.user)
