"""Invalidation by dependency, tag and organization; bounded indexes; copies in other processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from cache import Cache, LocalOptions
from cache.coherence import dependencies
from tests.support.caches import Loader, cache_on
from tests.support.outages import fragile_server
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


@pytest.fixture
async def other(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


async def _fill(cache: Cache, agent: str, value: Any = 1, **how: Any) -> None:
    await cache.agents.get_or_load(agent, Loader(value), **how)


async def test_a_dependency_reaches_the_agents_that_hold_it(cache: Cache, other: Cache) -> None:
    await _fill(cache, "a1", depends_on=["block:b1", "tool:t1"])
    await _fill(cache, "a2", depends_on=["block:b1"])
    await _fill(cache, "a3", depends_on=["block:b2"])
    await other.agents.invalidate_dependency("block:b1")
    assert await cache.agents.get_many(["a1", "a2", "a3"]) == {"a3": 1}


async def test_dependencies_may_be_read_from_the_value(cache: Cache) -> None:
    class State(BaseModel):
        blocks: list[str]

    await cache.agents.get_or_load(
        "a1",
        Loader(State(blocks=["b1"])),
        depends_on=lambda state: [f"block:{b}" for b in state.blocks],
    )
    await cache.agents.invalidate_dependency("block:b1")
    assert await cache.agents.get("a1") is None


async def _scripts_run(client: Any) -> int:
    calls: int = (await client.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0)
    return calls


async def test_fifteen_dependencies_are_stored_in_one_round_trip(cache: Cache, client: Any) -> None:
    """A miss runs two scripts: its lease, and its fill with all that it depends on."""
    names = [f"block:b{number}" for number in range(15)]
    await _fill(cache, "warm", depends_on=names, organisation="o1")
    before = await _scripts_run(client)
    await _fill(cache, "a1", depends_on=names, organisation="o1")
    assert await _scripts_run(client) - before == 2
    for name in (names[0], names[-1]):
        assert await cache.agents.get("a1", organisation="o1") == 1
        await cache.agents.invalidate_dependency(name)
        assert await cache.agents.get("a1", organisation="o1") is None
        await _fill(cache, "a1", depends_on=names, organisation="o1")


async def test_a_leased_fill_names_what_it_depends_on(cache: Cache, other: Cache) -> None:
    lease = await cache.agents.lease("a1")
    assert lease is not None
    assert await cache.agents.fill("a1", 1, lease, depends_on=["block:b1"])
    assert await other.agents.get("a1") == 1
    await other.agents.invalidate_dependency("block:b1")
    assert await other.agents.get("a1") is None


async def test_warmed_states_name_what_they_depend_on(cache: Cache, other: Cache) -> None:
    async def load(agent: str) -> dict[str, str]:
        return {"block": "b1" if agent == "a1" else "b2"}

    def names(value: dict[str, str]) -> list[str]:
        return [f"block:{value['block']}"]

    done = await cache.agents.warm(["a1", "a2"], load, organisation="o1", depends_on=names)
    assert done == {"warmed": 2, "failed": 0}
    await other.agents.invalidate_dependency("block:b1")
    found = await other.agents.get_many(["a1", "a2"], organisation="o1")
    assert found == {"a2": {"block": "b2"}}
    await other.agents.invalidate_organisation("o1")
    assert await other.agents.get_many(["a1", "a2"], organisation="o1") == {}


async def test_a_fill_that_lost_its_lease_records_nothing(
    cache: Cache, other: Cache, client: Any
) -> None:
    lease = await cache.agents.lease("a1")
    assert lease is not None
    await other.agents.invalidate("a1")
    filled = await cache.agents.fill("a1", 1, lease, organisation="o1", depends_on=["block:b1"])
    assert filled is False
    keys = cache.components.keys
    assert not await client.exists(keys.dependency("block:b1"), keys.organisation("o1"))


async def test_a_fill_refused_by_one_dependency_records_none(
    cache: Cache, other: Cache, client: Any
) -> None:
    """And its lease is free at once for the next load."""
    lease = await cache.agents.lease("a1")
    assert lease is not None
    await other.agents.invalidate_dependency("block:b2")
    names = ["block:b1", "block:b2"]
    assert not await cache.agents.fill("a1", "old", lease, depends_on=names)
    assert not await client.exists(cache.components.keys.dependency("block:b1"))
    assert await other.agents.lease("a1") is not None


async def test_a_value_that_is_loaded_again_is_found(cache: Cache) -> None:
    for _ in range(3):
        await _fill(cache, "a1", depends_on=["block:b1"])
        assert await cache.agents.get("a1") == 1
        await cache.agents.invalidate_dependency("block:b1")
        assert await cache.agents.get("a1") is None


async def test_a_tag_is_a_dependency(cache: Cache) -> None:
    await _fill(cache, "a1", depends_on=["tag:vip"])
    await cache.agents.set("a2", 2, depends_on=["tag:vip"])
    await cache.agents.invalidate_tag("vip")
    assert await cache.agents.get_many(["a1", "a2"]) == {}


async def test_an_unknown_dependency_invalidates_nothing(cache: Cache) -> None:
    await _fill(cache, "a1")
    await cache.agents.invalidate_dependency("block:none")
    assert await cache.agents.get("a1") == 1


async def test_an_organization_is_invalidated_in_one_step(cache: Cache, other: Cache) -> None:
    await _fill(cache, "a1", organisation="o1")
    await _fill(cache, "a2", organisation="o2")
    await other.agents.invalidate_organisation("o1")
    assert await cache.agents.get("a1", organisation="o1") is None
    assert await cache.agents.get("a2", organisation="o2") == 1
    await _fill(cache, "a1", 2, organisation="o1")
    assert await other.agents.get("a1", organisation="o1") == 2


async def test_an_organizations_invalidation_refuses_older_loads(
    cache: Cache, other: Cache
) -> None:
    loader = Loader("old")
    loader.hold()
    first = asyncio.create_task(cache.agents.get_or_load("a1", loader, organisation="o1"))
    await loader.started.wait()
    await other.agents.invalidate_organisation("o1")
    loader.go.set()
    await first
    assert await other.agents.get("a1", organisation="o1") is None


async def test_an_overflowed_organization_is_found_by_a_scan(valkey_url: str, prefix: str) -> None:
    """Names that a pattern or a key could take for something else reach only their own values."""
    odd = "o*[1]:%}{"
    async with cache_on(valkey_url, prefix, max_dependents=2) as cache:
        for number in range(4):
            await _fill(cache, f"a{number}", organisation=odd)
        await _fill(cache, "b1", organisation="o1")
        await _fill(cache, "b2")
        assert await cache.agents.invalidate_organisation(odd)
        for number in range(4):
            assert await cache.agents.get(f"a{number}", organisation=odd) is None
        assert await cache.agents.get("b1", organisation="o1") == 1
        assert await cache.agents.get("b2") == 1
        assert cache.stats()["index_lost"] == 1
        await _fill(cache, "a1", organisation=odd)
        assert await cache.agents.get("a1", organisation=odd) == 1
        assert await cache.agents.invalidate_organisation(odd)
        assert await cache.agents.get("a1", organisation=odd) is None


async def test_everything_named_goes_in_one_round_trip(cache: Cache, client: Any) -> None:
    await _fill(cache, "a1")
    await _fill(cache, "a2", depends_on=["block:b1"])
    await _fill(cache, "a3", organisation="o1")
    await cache.messages.get_or_load("a4", Loader([{"id": "m", "sequence_id": 1}]))
    names: dict[str, Any] = {
        "agents": ["a1", *(f"x{number}" for number in range(50))],
        "dependencies": ["block:b1"],
        "organisations": ["o1"],
        "conversations": [("a4", "default")],
    }
    await cache.invalidate(agents=["the script is known from here on"])
    before = await client.info("commandstats")
    assert await cache.invalidate(**names)
    after = await client.info("commandstats")
    calls = [info["cmdstat_evalsha"]["calls"] for info in (before, after)]
    assert calls[1] - calls[0] == 1
    assert await cache.agents.get_many(["a1", "a2"]) == {}
    assert await cache.agents.get("a3", organisation="o1") is None
    assert await cache.messages.list("a4", limit=1) is None


async def test_a_load_too_long_to_judge_is_not_stored(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended a write is remembered for a while; a longer load may be from before it."""
    monkeypatch.setattr(dependencies, "_LONGEST_LOAD_US", -1)
    await _fill(cache, "a1", depends_on=["block:b1"])
    await _fill(cache, "a2")
    assert await cache.agents.get_many(["a1", "a2"]) == {"a2": 1}


async def test_a_value_of_an_organisation_is_not_read_without_it(cache: Cache) -> None:
    await _fill(cache, "a1", organisation="o1")
    assert await cache.agents.get("a1") is None
    assert await cache.agents.get("a1", organisation="o2") is None


async def test_an_overflowed_index_invalidates_everything(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix, max_dependents=10) as cache:
        for number in range(15):
            await _fill(cache, f"a{number}", depends_on=["block:b1"])
        await cache.agents.invalidate_dependency("block:b1")
        assert await cache.agents.get_many([f"a{n}" for n in range(15)]) == {}
        assert cache.stats()["index_lost"] == 1
        await _fill(cache, "a1", depends_on=["block:b1"])
        await cache.agents.invalidate_dependency("block:b2")
        assert await cache.agents.get("a1") == 1


async def test_an_evicted_index_invalidates_everything(tmp_path: Any) -> None:
    with fragile_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru") as s:
        async with cache_on(s.url, "lc:") as cache:
            for number in range(300):
                await cache.agents.set(f"x{number}", b"x" * 20_000)
            await _fill(cache, "a1", depends_on=["block:b1"])
            await cache.components.entries.connection.execute(
                "DEL", cache.components.keys.dependency("block:b1")
            )
            await cache.agents.invalidate_dependency("block:b1")
            assert await cache.agents.get("a1") is None
            assert cache.stats()["index_lost"] == 1


async def test_invalidating_everything_refuses_running_loads(cache: Cache, other: Cache) -> None:
    await _fill(cache, "a1")
    await cache.messages.get_or_load("a1", Loader([{"id": "m", "sequence_id": 1}]))
    await cache.agents.sessions.set("a1", "s1", "stays")
    loader = Loader("old")
    loader.hold()
    first = asyncio.create_task(cache.agents.get_or_load("a2", loader))
    await loader.started.wait()
    await other.invalidate_everything()
    loader.go.set()
    await first
    assert await cache.agents.get_many(["a1", "a2"]) == {}
    assert await cache.messages.list("a1", limit=1) is None
    assert await cache.agents.sessions.get("a1", "s1") == "stays"


LOCAL = LocalOptions(ttl_s=60)


async def _copied(cache: Cache, agent: str, value: Any = None, **how: Any) -> None:
    """Wait until a read was served from the local copy."""

    async def served_here() -> bool:
        before = cache.stats()["local_hits"]
        found = await cache.agents.get(agent, **how)
        return cache.stats()["local_hits"] > before and (value is None or found == value)

    await eventually(served_here)


async def test_a_copy_is_served_without_the_server(
    valkey_url: str, prefix: str, client: Any
) -> None:
    async with cache_on(valkey_url, prefix, local=LOCAL) as cache:
        await cache.agents.set("a1", {"k": 1})
        await _copied(cache, "a1")
        await client.config_resetstat()
        for _ in range(10):
            assert await cache.agents.get("a1") == {"k": 1}
            assert await cache.agents.get_or_load("a1", Loader("never")) == {"k": 1}
        assert "cmdstat_mget" not in await client.info("commandstats")


async def test_copies_are_not_shared_between_callers(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix, local=LOCAL) as cache:
        await cache.agents.set("a1", {"k": [1]})
        await _copied(cache, "a1")
        (await cache.agents.get("a1"))["k"].append(2)
        assert await cache.agents.get("a1") == {"k": [1]}


@pytest.mark.parametrize("how", ["agent", "set", "organisation", "dependency", "everything"])
async def test_an_invalidation_drops_copies_of_other_processes(
    valkey_url: str, prefix: str, how: str
) -> None:
    async with (
        cache_on(valkey_url, prefix, local=LOCAL) as reader,
        cache_on(valkey_url, prefix) as writer,
    ):
        place: dict[str, Any] = {"organisation": "o1"} if how == "organisation" else {}
        await _fill(reader, "a1", "old", depends_on=["block:b1"], **place)
        await _copied(reader, "a1", "old", **place)
        if how == "agent":
            await writer.agents.invalidate("a1")
        elif how == "set":
            await writer.agents.set("a1", "new")
        elif how == "organisation":
            await writer.agents.invalidate_organisation("o1")
        elif how == "dependency":
            await writer.agents.invalidate_dependency("block:b1")
        else:
            await writer.invalidate_everything()

        async def gone() -> bool:
            return bool(await reader.agents.get("a1", **place) != "old")

        assert await eventually(gone, deadline_s=5)


async def test_a_process_drops_its_copy_when_it_invalidates(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix, local=LOCAL) as cache:
        for number in range(50):
            await cache.agents.set("a1", number)
            await cache.agents.get("a1")
            await cache.agents.get("a1")
            await cache.agents.invalidate("a1")
            assert await cache.agents.get("a1") is None


async def test_copies_are_bypassed_until_the_backplane_catches_up(
    tmp_path: Any, prefix: str
) -> None:
    with fragile_server(tmp_path) as server:
        async with (
            cache_on(server.url, prefix, local=LOCAL) as reader,
            cache_on(server.url, prefix) as writer,
        ):
            await _fill(reader, "a1", "old")
            await _copied(reader, "a1", "old")
            server.kill()

            async def lost() -> bool:
                return not reader.components.backplane.caught_up

            await eventually(lost)
            assert await reader.agents.get("a1") is None
            server.start()
            await writer.agents.invalidate("a1")

            async def back() -> bool:
                return reader.components.backplane.caught_up

            await eventually(back)
            assert await reader.agents.get("a1") is None


async def test_a_gap_in_the_backplane_drops_all_copies(
    valkey_url: str, prefix: str, client: Any
) -> None:
    async with cache_on(valkey_url, prefix, local=LOCAL) as cache:
        await _fill(cache, "a1", "old")
        await _copied(cache, "a1", "old")
        backplane = cache.components.backplane
        key = cache.components.keys.backplane
        await client.xadd(key, {"i": "unrelated"})

        async def applied() -> bool:
            return int(backplane.position.split(b"-")[0]) > 0

        await eventually(applied)
        # While the listener is away, the stream is trimmed past its position.
        await backplane.close()
        await client.xadd(key, {"i": "missed"})
        await client.xtrim(key, maxlen=0)
        await client.xadd(key, {"i": "later"})
        flushes = cache.stats()["local_flushes"]
        await backplane.catch_up()
        assert cache.stats()["local_flushes"] == flushes + 1
        assert cache.stats()["local_values"] == 0
