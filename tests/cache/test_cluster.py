"""The cache on a cluster of three nodes: every script on one slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache import Cache, LocalOptions
from tests.support.caches import Loader, cache_on
from tests.support.clusters import cluster
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with cluster(tmp_path) as nodes:
        yield nodes.url


async def test_everything_works_on_a_cluster(url: str) -> None:
    async with (
        cache_on(url, "lc:", local=LocalOptions(ttl_s=60)) as reader,
        cache_on(url, "lc:") as writer,
    ):
        await _values(reader, writer)
        await _dependencies(reader, writer)
        await _messages(reader, writer)
        await _messages_by_id(reader, writer)
        await _named_lease(reader, writer)
        await _stampede(reader, writer)
        assert writer.stats()["outages"] == 0


async def _values(reader: Cache, writer: Cache) -> None:
    for number in range(20):
        assert await writer.agents.set(f"a{number}", number)
    found = await writer.agents.get_many([f"a{number}" for number in range(21)])
    assert found == {f"a{number}": number for number in range(20)}
    large = "x" * 300_000
    assert await writer.agents.set("large", large)
    assert await reader.agents.get("large") == large

    await reader.agents.get_or_load("b1", Loader(1), depends_on=["block:1"], organisation="o1")
    assert await reader.agents.get("b1", organisation="o1") == 1
    await writer.agents.invalidate_organisation("o1")
    assert await writer.agents.get("b1", organisation="o1") is None

    await writer.agents.invalidate("a1", "a2")
    assert await writer.agents.get_many(["a1", "a2", "a3"]) == {"a3": 3}
    await reader.agents.get_or_load("b2", Loader(2), depends_on=["block:2"])
    # The clocks of two nodes differ, so records within 2 s of an invalidation are refused.
    await writer.agents.invalidate_dependency("block:2")
    assert await writer.agents.get("b2") is None

    lease = await writer.agents.lease("c1")
    assert lease is not None
    await reader.agents.invalidate("c1")
    assert not await writer.agents.fill("c1", "old", lease)

    await writer.invalidate_everything()
    assert await writer.agents.get("a3") is None

    async def gone_here_too() -> bool:
        return await reader.agents.get("a3") is None

    await eventually(gone_here_too)


async def _dependencies(reader: Cache, writer: Cache) -> None:
    """What is known before a load is recorded while its loader runs."""
    index = reader.components.keys.dependency

    async def recorded() -> bool:
        return all([await writer.client.exists(index(name)) for name in ("block:3", "block:4")])

    async def load() -> str:
        await eventually(recorded)
        return "value"

    async def load_while_it_changes() -> str:
        await eventually(recorded)
        await writer.agents.invalidate_dependency("block:4")
        return "old"

    for agent, loader in (("d1", load), ("d2", load_while_it_changes)):
        await reader.agents.get_or_load(agent, loader, depends_on=["block:3", "block:4"])
    assert reader.stats()["fills_refused"] == 1
    assert await writer.agents.get_many(["d1", "d2"]) == {}


async def _messages(reader: Cache, writer: Cache) -> None:
    rows = [{"id": f"m{number}", "sequence_id": number} for number in (1, 2)]
    await reader.messages.get_or_load("a1", Loader(rows), limit=2)
    assert await writer.messages.append("a1", [{"id": "m5", "sequence_id": 5}], after=2)
    page = await reader.messages.list("a1", limit=2)
    assert page is not None
    assert [row["sequence_id"] for row in page] == [5, 2]
    await writer.messages.invalidate("a1")
    assert await reader.messages.list("a1", limit=2) is None


async def _messages_by_id(reader: Cache, writer: Cache) -> None:
    ids = [f"m{number}" for number in range(20)]

    async def load(missing: list[str]) -> dict[str, str]:
        return dict.fromkeys(missing, "loaded")

    leases = await writer.messages.lease_many(ids[:10], scope="o")
    put = await writer.messages.put_many(dict.fromkeys(ids[:10], "put"), scope="o", leases=leases)
    assert put == set(ids[:10])
    found = await reader.messages.get_or_load_many(ids, load, scope="o")
    assert found == dict.fromkeys(ids[:10], "put") | dict.fromkeys(ids[10:], "loaded")
    async with writer.writing(messages=[("o", i) for i in ids[1:]]):
        assert await reader.messages.get_many(ids, scope="o") == {"m0": "put"}
    assert await reader.messages.get_or_load_many(ids, load, scope="o")
    assert await writer.messages.invalidate_ids(*ids[1:], scope="o")
    assert await reader.messages.get_many(ids, scope="o") == {"m0": "put"}


async def _named_lease(reader: Cache, writer: Cache) -> None:
    async with reader.lease("polls", ttl_s=2) as first:
        pass
    async with writer.lease("polls", ttl_s=2) as second:
        assert second.token > first.token


async def _stampede(reader: Cache, writer: Cache) -> None:
    loader = Loader("value")
    calls = [c.agents.get_or_load("s1", loader) for c in (reader, writer) for _ in range(50)]
    assert set(await asyncio.gather(*calls)) == {"value"}
    assert loader.calls == 1
