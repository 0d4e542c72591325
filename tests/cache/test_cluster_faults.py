"""A cluster of three nodes: writes per tick, moving slots, and nodes that die, restart or fail over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from cache import Cache
from tests.support.caches import Loader, cache_on
from tests.support.clusters import Cluster, Node, cluster
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

PREFIX = "lc:"


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as nodes:
        yield nodes


async def _trusted(*caches: Cache) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*(cache.settled() for cache in caches))


async def _reads(node: Node) -> int:
    """How often the node has read from its clients."""
    return int((await node.client.info("stats"))["total_reads_processed"])


async def test_the_commands_of_a_tick_leave_in_one_write_per_node(nodes: Cluster) -> None:
    agents = [name for node in nodes.nodes for name in nodes.agents_on(node, 20)]
    async with cache_on(nodes.url, PREFIX) as cache:
        for number, agent in enumerate(agents):
            assert await cache.agents.set(agent, number)
        reads: list[list[int]] = []
        # The cache's counters are written now and then, too, which is one read more.
        while [2, 2, 2] not in reads and len(reads) < 5:
            before = [await _reads(node) for node in nodes.nodes]
            found = await cache.agents.get_many(agents)
            after = [await _reads(node) for node in nodes.nodes]
            assert found == {agent: number for number, agent in enumerate(agents)}
            # The second INFO is one read itself.
            reads.append([b - a for a, b in zip(before, after, strict=True)])
        assert reads[-1] == [2, 2, 2]
        assert cache.stats()["outages"] == 0


async def test_values_of_all_nodes_are_invalidated(nodes: Cluster) -> None:
    agents = [name for node in nodes.nodes for name in nodes.agents_on(node, 5)]
    async with cache_on(nodes.url, PREFIX) as reader, cache_on(nodes.url, PREFIX) as writer:
        for agent in agents:
            await reader.agents.get_or_load(agent, Loader(1), depends_on=["block:b"])
            await reader.messages.get_or_load(agent, Loader([{"id": "m", "sequence_id": 1}]))
        assert len(await writer.agents.get_many(agents)) == len(agents)
        assert await writer.agents.invalidate(*agents)
        assert await reader.agents.get_many(agents) == {}

        for agent in agents:
            await reader.agents.get_or_load(agent, Loader(1), depends_on=["block:b"])
        assert await writer.agents.invalidate_dependency("block:b")
        assert await reader.agents.get_many(agents) == {}

        assert len(await asyncio.gather(*(reader.messages.list(a, limit=1) for a in agents))) == 15
        assert await writer.invalidate_everything()
        pages = await asyncio.gather(*(reader.messages.list(a, limit=1) for a in agents))
        assert pages == [None] * len(agents)


async def test_a_write_on_all_nodes_begins_side_by_side(nodes: Cluster) -> None:
    agents = [name for node in nodes.nodes for name in nodes.agents_on(node, 5)]
    async with cache_on(nodes.url, PREFIX) as reader, cache_on(nodes.url, PREFIX) as writer:
        for agent in agents:
            await reader.agents.get_or_load(
                agent, Loader(1), depends_on=["block:b"], organisation="o"
            )
        await writer.invalidate(agents=["every node knows the script", *agents[::5]])
        reads: list[list[int]] = []
        others = ({"dependencies": ["block:b"]}, {"organisations": ["o"]})
        for names in (*[{"agents": agents}] * 3, *others):
            before = [await _reads(node) for node in nodes.nodes]
            async with writer.writing(**names):  # type: ignore[arg-type]
                begun = [await _reads(node) for node in nodes.nodes]
                for agent in agents:
                    how = {"depends_on": ["block:b"], "organisation": "o"}
                    assert await reader.agents.get_or_load(agent, Loader(1), **how) == 1  # type: ignore[arg-type]
                found = await reader.agents.get_many(agents, organisation="o")
                assert found == {}
            if "agents" in names:
                reads.append([b - a for a, b in zip(before, begun, strict=True)])
        # One read for each node, another for the backplane's, and INFO is one itself. The cache's
        # counters are written now and then, too.
        assert any(set(each) <= {2, 3} for each in reads), reads
        assert writer.stats()["outages"] == 0


async def _move_keys(slot: int, source: Node, target: Node) -> None:
    await target.cluster("SETSLOT", slot, "IMPORTING", await source.id())
    await source.cluster("SETSLOT", slot, "MIGRATING", await target.id())
    keys = await source.cluster("GETKEYSINSLOT", slot, 100)
    await source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)


async def _move_slot(slot: int, source: Node, target: Node) -> None:
    for node in (target, source):
        await node.cluster("SETSLOT", slot, "NODE", await target.id())


async def test_a_moving_slot_costs_only_misses(nodes: Cluster) -> None:
    source, target, _ = nodes.nodes
    agent, beside = nodes.agents_on(source, 2)
    slot = key_slot(f"{PREFIX}{{{agent}}}".encode())
    async with cache_on(nodes.url, PREFIX) as cache, cache_on(nodes.url, PREFIX) as other:
        await cache.agents.set(agent, "old")
        await cache.agents.set(beside, "there")
        await _move_keys(slot, source, target)
        # A slot that is half moved: ASK for one key, TRYAGAIN for several.
        assert await other.agents.invalidate(agent)
        assert await cache.agents.get_or_load(agent, Loader("new")) == "new"
        assert await cache.agents.get(beside) == "there"

        await _move_slot(slot, source, target)
        assert await cache.agents.get(agent) is None
        assert await cache.agents.get_or_load(agent, Loader("newer")) == "newer"
        assert await other.agents.get(agent) == "newer"
        assert await other.agents.invalidate(agent)
        assert await cache.agents.get(agent) is None
        assert await cache.agents.get(beside) == "there"
        assert cache.stats()["outages"] == other.stats()["outages"] == 0


async def test_a_restarted_node_serves_nothing_from_before(nodes: Cluster) -> None:
    restarted, beside, _ = nodes.nodes
    agent, kept = nodes.agents_on(restarted, 1)[0], nodes.agents_on(beside, 1)[0]
    async with cache_on(nodes.url, PREFIX) as cache:
        for name in (agent, kept):
            await cache.agents.set(name, "old")
        await cache.messages.get_or_load(agent, Loader([{"id": "m1", "sequence_id": 1}]))
        restarted.kill()
        restarted.start()
        await _serves(nodes, restarted)

        async with cache_on(nodes.url, PREFIX) as newcomer:
            assert await restarted.client.exists(f"{PREFIX}{{{agent}}}:state:")
            assert await newcomer.agents.get(agent) is None
            assert await newcomer.messages.list(agent, limit=1) is None
            assert await newcomer.agents.get(kept) == "old"  # of a node that went on
            assert await newcomer.agents.get_or_load(agent, Loader("new")) == "new"
            await cache.agents.get(agent)  # finds its connection gone
            await _trusted(cache)
            await eventually(lambda: _is(cache, agent, "new"))


async def _is(cache: Cache, agent: str, value: Any) -> bool:
    return bool(await cache.agents.get(agent) == value)


async def _serves(nodes: Cluster, node: Node) -> None:
    """Whether a restarted node answers for its slots again."""
    probe = nodes.agents_on(node, 1)[0]

    async def answers() -> bool:
        try:
            return bool(await node.ask("EXISTS", f"{PREFIX}{{{probe}}}:nothing") == 0)
        except RedisError:
            return False

    await eventually(answers, deadline_s=30)


async def test_with_a_node_killed_callers_go_to_their_loaders(nodes: Cluster) -> None:
    killed, other, _ = nodes.nodes
    lost, kept = nodes.agents_on(killed, 1)[0], nodes.agents_on(other, 1)[0]
    async with cache_on(nodes.url, PREFIX) as cache:
        for name in (lost, kept):
            await cache.agents.set(name, "old")
        killed.kill()
        assert await cache.agents.get_or_load(lost, Loader("new")) == "new"
        assert not await cache.agents.invalidate(lost)
        assert await cache.agents.get_or_load(kept, Loader("loaded")) in {"loaded", "old"}
        killed.start()
        await _trusted(cache)
        assert cache.stats()["invalidations_missed"] == 0
        assert await cache.agents.get_or_load(lost, Loader("new")) == "new"


async def test_a_replica_that_took_over_serves_nothing_from_before(tmp_path: Path) -> None:
    async with cluster(tmp_path, replica=True) as nodes:
        primary, replica = nodes.nodes[0], nodes.nodes[-1]
        agent = nodes.agents_on(primary, 1)[0]
        async with cache_on(nodes.url, PREFIX) as cache:
            await cache.agents.set(agent, "old")
            await primary.ask("WAIT", 1, 5000)
            primary.kill()
            await replica.cluster("FAILOVER", "TAKEOVER")

            async def taken() -> bool:
                info = await replica.client.info("replication")
                return bool(info["role"] == "master")

            await eventually(taken)
            assert await cache.agents.get_or_load(agent, Loader("new")) == "new"
            await _trusted(cache)
            await eventually(lambda: _stored(cache, agent))
            assert await cache.agents.get(agent) == "new"


async def _stored(cache: Cache, agent: str) -> bool:
    await cache.agents.get_or_load(agent, Loader("new"))
    return await cache.agents.get(agent) is not None
