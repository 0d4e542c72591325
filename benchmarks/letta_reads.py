"""
Reads an agent with and without the plug-in, in this process: a part of bench_letta.py.

That runs it with Letta's settings in the environment, once for each way of pooling. In each
round the plug-in is put in and taken out. Rounds are short, so that another load of the machine
meets all three kinds of read alike. Prints JSON: milliseconds by the clock and of this
process's CPU, and statements.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import letta_redis
from settings import Settings
from tests.letta.agents import Agents, counted_sql, make_agents

MESSAGES, BLOCKS, TOOLS = 20, 5, 10
# What the plug-in reads of the database at its start is over by then: it would run beside misses.
_START_S = 0.5

Read = Callable[[], Awaitable[Any]]


async def make_agent(agents: Agents) -> Any:
    """An agent with the blocks, tools and messages of the comparison."""
    from letta.schemas.block import CreateBlock
    from letta.schemas.letta_message_content import TextContent
    from letta.schemas.message import Message
    from letta.services.tool_manager import ToolManager

    tools = await ToolManager().list_tools_async(agents.user, limit=TOOLS)
    agent = await agents.create(
        memory_blocks=[
            CreateBlock(label=f"block{n}", value="what is known of it. " * 20)
            for n in range(BLOCKS)
        ],
        tool_ids=[tool.id for tool in tools],
        include_base_tools=False,
    )
    messages = [
        Message(agent_id=agent.id, role="user", content=[TextContent(text="a message. " * 20)])
        for _ in range(MESSAGES)
    ]
    return await agents.manager.append_to_in_context_messages_async(
        messages, agent_id=agent.id, actor=agents.user
    )


@dataclass(slots=True)
class Timed:
    """Milliseconds of each read, and the statements of the last one."""

    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    statements: int = 0

    async def note(self, read: Read) -> None:
        with counted_sql() as sent:
            started, cpu = time.perf_counter(), time.process_time()
            await read()
            self.ms.append((time.perf_counter() - started) * 1000)
            self.cpu_ms.append((time.process_time() - cpu) * 1000)
        self.statements = len(sent)


class Comparison:
    """The rounds, and what they have found."""

    def __init__(self, url: str, agents: Agents, agent_id: str) -> None:
        self._settings = Settings(redis_url=url)
        self._agents = agents
        self._id = agent_id
        self.reads = {name: Timed() for name in ("without", "miss", "hit")}

    async def _read(self) -> Any:
        return await self._agents.manager.get_agent_by_id_async(self._id, self._agents.user)

    async def round(self, times: int) -> None:
        for _ in range(times):
            await self.reads["without"].note(self._read)
        installation = letta_redis.install(self._settings)
        await installation.runtime.start()
        cache: Any = installation.runtime.cache()
        try:
            await self._read()
            await asyncio.sleep(_START_S)
            for _ in range(times):
                await self._forget(cache)
                await self.reads["miss"].note(self._read)
                await self.reads["hit"].note(self._read)
        finally:
            await installation.runtime.stop()
            letta_redis.uninstall()

    async def hits(self, runs: int) -> float:
        """The share of runs, one right after the other, that find their agent in the cache."""
        from letta.schemas.run import Run, RunUpdate
        from letta.services.run_manager import RunManager

        manager, user = RunManager(), self._agents.user
        installation = letta_redis.install(self._settings)
        await installation.runtime.start()
        cache: Any = installation.runtime.cache()
        try:
            await self._read()
            # Those of readers; refills are not counted.
            before = int((await cache.agents.stats(self._id))["loads"])
            for _ in range(runs):
                await self._read()
                run = await manager.create_run(pydantic_run=Run(agent_id=self._id), actor=user)
                update = RunUpdate(status="completed", stop_reason="end_turn")
                await manager.update_run_by_id_async(run.id, update, actor=user)
            loads = int((await cache.agents.stats(self._id))["loads"]) - before
        finally:
            await installation.runtime.stop()
            letta_redis.uninstall()
        return 1 - loads / runs

    async def _forget(self, cache: Any) -> None:
        """Take the value away as an eviction does: an invalidation would load it again."""
        keys = [key async for key in cache.client.scan_iter(f"*{{{self._id}}}*")]
        if keys:
            await cache.client.unlink(*keys)


async def main(rounds: int, times: int, runs: int) -> None:
    agents = await make_agents()
    agent = await make_agent(agents)
    comparison = Comparison(os.environ["BENCH_VALKEY"], agents, agent.id)
    for _ in range(rounds):
        await comparison.round(times)
    hits = await comparison.hits(runs)
    reads = comparison.reads.items()
    found = {
        "ms": {name: statistics.median(read.ms) for name, read in reads},
        "cpu_ms": {name: statistics.median(read.cpu_ms) for name, read in reads},
        "statements": {name: read.statements for name, read in reads},
        "hits": hits,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4])))
