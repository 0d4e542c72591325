"""While the cache's server is away or hangs, agents are read from PostgreSQL, without an error."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

import letta_redis
from letta_redis.plugin.install import Installation
from settings import Settings
from tests.letta.agents import Agents, counted_sql
from tests.support.servers import free_port, valkey
from tests.support.wait import eventually

pytestmark = pytest.mark.faults


@pytest.fixture
async def installed(letta: str, tmp_path: Path) -> AsyncIterator[tuple[Installation, int, Path]]:
    """The plug-in on a port where no server is yet."""
    port = free_port()
    installation = letta_redis.install(Settings(redis_url=f"redis://127.0.0.1:{port}/0"))
    await installation.runtime.start()
    yield installation, port, tmp_path / "valkey"
    await installation.runtime.stop()
    letta_redis.uninstall()


async def pid_of(port: int) -> int:
    """The process of the server on this port."""
    async with Redis(port=port) as client:
        found = await client.info("server")
    return int(found["process_id"])


async def test_agents_are_read_whatever_the_server_does(
    installed: tuple[Installation, int, Path], agents: Agents
) -> None:
    _, port, home = installed
    agent = await agents.create()

    async def read() -> int:
        """The number of statements of one read."""
        with counted_sql() as statements:
            state = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
        assert state.id == agent.id
        return len(statements)

    async def hit() -> bool:
        return await read() == 0

    assert await read() > 0  # it was never there
    with valkey(home, port=port):
        await eventually(hit, deadline_s=60)
        pid = await pid_of(port)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert await read() > 0
        finally:
            os.kill(pid, signal.SIGCONT)
        await eventually(hit, deadline_s=60)
    assert await read() > 0  # it is gone
    with valkey(home, port=port):
        await eventually(hit, deadline_s=60)


async def test_a_refused_write_is_an_unavailable_service(
    letta: str, agents: Agents, tmp_path: Path
) -> None:
    from letta.errors import LettaServiceUnavailableError
    from letta.schemas.block import BlockUpdate
    from letta.services.block_manager import BlockManager

    block = (await agents.create()).blocks[0].id
    url = f"redis://127.0.0.1:{free_port()}/0"
    installation = letta_redis.install(Settings(redis_url=url, cache_cut_off="refuse"))
    await installation.runtime.start()
    try:
        with pytest.raises(LettaServiceUnavailableError, match="LETTA_CACHE_CUT_OFF"):
            await BlockManager().update_block_async(
                block, BlockUpdate(value="refused"), agents.user
            )
    finally:
        await installation.runtime.stop()
        letta_redis.uninstall()
    assert (await BlockManager().get_block_by_id_async(block, agents.user)).value != "refused"
