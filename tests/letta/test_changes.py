"""What Letta's managers write is seen by the next read, however the write ends."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from letta_redis.plugin.changes import Changes
from tests.letta.agents import Agents
from tests.letta.canceling import CanceledAt, canceled_at

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("plugin")]

# Set it to thousands for a long run.
_OPERATIONS = int(os.environ.get("RANDOM_WRITES", "60"))
_CANCELED = 60


@pytest.fixture
async def reads(cache: Any) -> Any:
    from tests.letta.audit import Reads

    return Reads(cache)


async def _is_hit(reads: Any, agent_id: str, actor: Any) -> bool:
    """Read an agent until it is in the cache, and say whether a second read finds it there."""
    await reads.cached(agent_id, actor)
    _, hit = await reads.cached(agent_id, actor)
    return bool(hit)


async def _same(reads: Any, agent_id: str, actor: Any) -> bool:
    """Whether the cache serves what the database holds."""
    cached, _ = await reads.cached(agent_id, actor)
    return bool(cached == await reads.database(agent_id, actor))


async def _awaited(run: Any) -> Any:
    return await run


async def _until_hit(reads: Any, agent_id: str, actor: Any) -> None:
    """Far sooner than the intent of a write that nobody ends would lapse."""
    async with asyncio.timeout(15):
        while not await _is_hit(reads, agent_id, actor):
            pass


async def test_random_writes_leave_nothing_stale(agents: Agents, reads: Any) -> None:
    from tests.letta.audit import Audit
    from tests.letta.operations import World

    world, audit = World(Random(1), agents.user), Audit(reads)
    await world.populate()
    done = 0
    for _ in range(_OPERATIONS):
        name, operation = world.draw()
        try:
            await operation()
            done += 1
        except Exception as exc:  # noqa: BLE001  (names that are taken, rows that are gone)
            name += f" ({type(exc).__name__})"
        audit.agents = dict.fromkeys([*world.alive, *world.agents[-6:]], agents.user)
        await audit.check(name)

    assert audit.stale == []
    assert done > _OPERATIONS / 2
    assert audit.comparisons > _OPERATIONS
    assert audit.messages > 0
    assert audit.windows > 0


async def test_each_agent_that_shows_a_block_sees_its_change(agents: Agents, reads: Any) -> None:
    from letta.schemas.block import BlockUpdate
    from letta.services.block_manager import BlockManager

    first = await agents.create()
    second = await agents.create(memory_blocks=[], block_ids=[first.blocks[0].id])
    assert await _is_hit(reads, second.id, agents.user)

    await BlockManager().update_block_async(
        first.blocks[0].id, BlockUpdate(value="changed"), agents.user
    )

    assert await _same(reads, second.id, agents.user)


@pytest.mark.parametrize("many", [False, True])
async def test_an_upsert_of_an_attached_tool_is_seen(
    agents: Agents, reads: Any, *, many: bool
) -> None:
    from letta.schemas.tool import Tool
    from letta.services.tool_manager import ToolManager

    def tool(description: str) -> Any:
        schema = {"name": "mine", "description": description, "parameters": {"type": "object"}}
        return Tool(name="mine", source_code="def mine(): pass", json_schema=schema,
                    source_type="python", description=description)  # fmt: skip

    async def upsert(description: str) -> Any:
        if many:
            found = await ToolManager().bulk_upsert_tools_async([tool(description)], agents.user)
            return found[0]
        return await ToolManager().create_or_update_tool_async(tool(description), agents.user)

    agent = await agents.create(tool_ids=[(await upsert("one")).id])
    assert await _is_hit(reads, agent.id, agents.user)

    await upsert("two")

    assert await _same(reads, agent.id, agents.user)


async def test_an_upsert_of_an_attached_source_is_seen(agents: Agents, reads: Any) -> None:
    from letta.schemas.embedding_config import EmbeddingConfig
    from letta.schemas.source import Source
    from letta.services.source_manager import SourceManager

    async def upsert(description: str) -> Any:
        source = Source(name="mine", description=description,
                        embedding_config=EmbeddingConfig.default_config(provider="openai"))  # fmt: skip
        return (await SourceManager().bulk_upsert_sources_async([source], agents.user))[0]

    agent = await agents.create(source_ids=[(await upsert("one")).id])
    assert await _is_hit(reads, agent.id, agents.user)

    await upsert("two")

    assert await _same(reads, agent.id, agents.user)


async def test_a_write_canceled_at_each_await_leaves_nothing_stale(
    agents: Agents, reads: Any
) -> None:
    from letta.schemas.block import BlockUpdate
    from letta.services.block_manager import BlockManager

    agent = await agents.create()
    block = agent.blocks[0].id
    ends: list[str] = []
    at, awaits = 0, 1
    while at < awaits:
        at += 1
        assert await _is_hit(reads, agent.id, agents.user)
        write = BlockManager().update_block_async(block, BlockUpdate(value=f"v{at}"), agents.user)
        end, seen = await canceled_at(write, at)
        ends.append(end)
        awaits = max(awaits, seen)
        assert await _same(reads, agent.id, agents.user)
        # A COMMIT of unknown outcome keeps its agents out of the cache a little longer.
        await _until_hit(reads, agent.id, agents.user)
        assert await _same(reads, agent.id, agents.user)

    assert awaits > 10
    assert set(ends) <= {"CancelledError", ""}


async def test_canceled_commits_leave_nothing_stale(
    agents: Agents, reads: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from letta.schemas.block import BlockUpdate
    from letta.server.db import engine
    from letta.services.block_manager import BlockManager
    from sqlalchemy import event

    agent = await agents.create()
    writes: list[CanceledAt] = []
    stale: list[int] = []

    def committing(_connection: Any) -> None:
        writes[-1].cancel_next()

    async def look(number: int) -> None:
        if not await _same(reads, agent.id, agents.user):
            stale.append(number)

    for number in range(_CANCELED):
        assert await _is_hit(reads, agent.id, agents.user)
        update = BlockUpdate(value=f"v{number}")
        write = BlockManager().update_block_async(agent.blocks[0].id, update, agents.user)
        writes.append(CanceledAt(write))
        event.listen(engine.sync_engine, "commit", committing)
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.ensure_future(_awaited(writes[-1]))
        finally:
            event.remove(engine.sync_engine, "commit", committing)
        await look(number)
        await _until_hit(reads, agent.id, agents.user)
        await look(number)

    assert stale == []
    assert caplog.text.count("letta.commit_unknown") == _CANCELED


async def test_a_write_ends_while_its_session_goes_on(agents: Agents, reads: Any) -> None:
    from letta.orm import Block
    from letta.server.db import db_registry
    from sqlalchemy import update

    agent = await agents.create()
    change = update(Block).where(Block.id == agent.blocks[0].id)
    async with db_registry.async_session() as session:
        for value in ("first", "second"):
            assert await _is_hit(reads, agent.id, agents.user)
            await session.execute(change.values(value=value))
            await session.commit()
            await _until_hit(reads, agent.id, agents.user)
            assert await _same(reads, agent.id, agents.user)


# The same without a part of what makes them true: they would see it.


async def test_without_dependencies_an_agent_stays_stale(
    agents: Agents, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave_out("dependencies", monkeypatch)

    with pytest.raises(AssertionError):
        await test_each_agent_that_shows_a_block_sees_its_change(agents, reads)


async def test_without_the_organization_an_upsert_stays_unseen(
    agents: Agents, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave_out("organisations", monkeypatch)

    with pytest.raises(AssertionError):
        await test_an_upsert_of_an_attached_source_is_seen(agents, reads)


async def test_without_a_shield_an_intent_is_left_behind(
    agents: Agents, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from letta.schemas.block import BlockUpdate
    from letta.services.block_manager import BlockManager

    from letta_redis.plugin.delivery import Deliveries

    kept: list[Any] = []

    def keep(_self: Any, transactions: Any) -> None:
        kept.append(transactions.sent)
        transactions.sent = None

    async def unshielded(self: Any, _transactions: Any) -> None:
        await asyncio.sleep(0)  # where a cancellation arrives
        while kept:
            begun = kept.pop()
            if begun is not None:
                await self._end(begun)

    monkeypatch.setattr(Deliveries, "committed", keep)
    monkeypatch.setattr(Deliveries, "settle", unshielded)
    agent = await agents.create()
    left = 0
    at, awaits = 0, 1
    while at < awaits and not left:
        at += 1
        write = BlockManager().update_block_async(
            agent.blocks[0].id, BlockUpdate(value=f"v{at}"), agents.user
        )
        _, seen = await canceled_at(write, at)
        awaits = max(awaits, seen)
        left += not await _is_hit(reads, agent.id, agents.user)

    assert left == 1


def _leave_out(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Changes.names
    monkeypatch.setattr(Changes, "names", lambda self: names(self) | {part: set()})


async def test_sessions_that_change_no_agent_cost_nothing(agents: Agents, cache: Any) -> None:
    from letta.schemas.job import Job
    from letta.services.job_manager import JobManager

    await agents.create()
    before = cache.stats()

    await JobManager().create_job_async(Job(user_id=agents.user.id), actor=agents.user)
    await agents.manager.size_async(agents.user)

    after = cache.stats()
    assert (after["intents"], after["invalidations"]) == (
        before["intents"],
        before["invalidations"],
    )
