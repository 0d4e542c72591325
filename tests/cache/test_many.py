"""`get_or_load_many`: one loader for what is missing, and each value by the rules of a single one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache import Cache, LoaderTimeout
from cache.coherence.batch import LoadBatch
from cache.connection.protocol import Away
from tests.support.caches import Loader, cache_on
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


class LoaderOfMany:
    """A loader over `rows` that remembers which ids it got, and can be paused halfway."""

    def __init__(self, **rows: Any) -> None:
        self.rows = rows
        self.calls: list[list[str]] = []
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, ids: list[str]) -> dict[str, Any]:
        self.calls.append(list(ids))
        found = {i: self.rows[i] for i in ids if i in self.rows}
        self.started.set()
        await self.go.wait()
        return found


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


@pytest.fixture
async def other(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


async def test_the_loader_gets_what_is_missing_in_one_call(cache: Cache, other: Cache) -> None:
    await other.agents.set("a2", 2)
    load = LoaderOfMany(a1=1, a2="never", a3=3)
    expected = {"a1": 1, "a2": 2, "a3": 3}
    ids = ["a3", "a1", "a2", "a1"]
    assert await cache.agents.get_or_load_many(ids, load) == expected
    assert [sorted(call) for call in load.calls] == [["a1", "a3"]]
    assert await other.agents.get_or_load_many(ids, load) == expected
    assert len(load.calls) == 1


async def test_an_id_that_is_not_returned_is_absent_and_not_stored(cache: Cache) -> None:
    load = LoaderOfMany(a1=1, a2=None)
    for _ in range(2):
        assert await cache.agents.get_or_load_many(["a1", "a2", "a3"], load) == {"a1": 1}
    # None that was returned is stored for the negative TTL.
    assert load.calls[1] == ["a3"]
    load.rows["a3"] = 3
    assert await cache.agents.get_or_load_many(["a3"], load) == {"a3": 3}


async def test_a_hundred_ids_go_to_the_loader_at_a_time(cache: Cache) -> None:
    load = LoaderOfMany(**{f"a{number}": number for number in range(250)})
    assert await cache.agents.get_or_load_many(load.rows, load) == load.rows
    assert sorted(map(len, load.calls)) == [50, 100, 100]
    assert await cache.agents.get_or_load_many([], load) == {}


async def test_overlapping_calls_of_two_processes_load_each_id_once(
    cache: Cache, other: Cache
) -> None:
    load = LoaderOfMany(**{f"a{number}": number for number in range(12)})
    sets = [[f"a{(start + n) % 12}" for n in range(5)] for start in range(12)]
    calls = [c.agents.get_or_load_many(ids, load) for ids in sets for c in (cache, other)]
    answers = await asyncio.gather(*calls)
    assert answers == [{i: load.rows[i] for i in ids} for ids in sets for _ in range(2)]
    assert sorted(i for call in load.calls for i in call) == sorted(load.rows)


async def test_what_changed_during_a_load_is_not_stored(cache: Cache, other: Cache) -> None:
    load = LoaderOfMany(a1="old", a2="old", a3="old")
    load.go.clear()
    loading = asyncio.create_task(
        cache.agents.get_or_load_many(
            ["a1", "a2", "a3"], load, depends_on=lambda _: ["block:b1"], organisation="o1"
        )
    )
    await load.started.wait()
    await other.agents.invalidate("a2")
    late = asyncio.create_task(
        cache.agents.get_or_load_many(["a1", "a2"], LoaderOfMany(a2="new"), organisation="o1")
    )

    async def joined() -> bool:
        return cache.stats()["joined"] == 2

    await eventually(joined)
    load.go.set()
    await loading
    assert await late == {"a1": "old", "a2": "new"}
    ids = ["a1", "a2", "a3"]
    found = await other.agents.get_many(ids, organisation="o1")
    assert found == {"a1": "old", "a2": "new", "a3": "old"}
    await other.agents.invalidate_dependency("block:b1")
    assert await other.agents.get_many(ids, organisation="o1") == {"a2": "new"}


@pytest.mark.parametrize("where", ["this process", "another process"])
async def test_the_loader_does_not_wait_for_other_loads(
    cache: Cache, other: Cache, where: str
) -> None:
    """a1 is loaded elsewhere, and that load ends only after ours has begun."""
    first, load = Loader("theirs"), LoaderOfMany(a1="never", a2="ours", a3="ours")
    first.hold()
    loader = cache if where == "this process" else other
    running = asyncio.create_task(loader.agents.get_or_load("a1", first))
    await first.started.wait()
    many = asyncio.create_task(cache.agents.get_or_load_many(["a1", "a2", "a3"], load))
    async with asyncio.timeout(30):
        await load.started.wait()
    first.go.set()
    assert await many == {"a1": "theirs", "a2": "ours", "a3": "ours"}
    assert [sorted(call) for call in load.calls] == [["a2", "a3"]]
    assert await running == "theirs"


async def test_an_id_whose_load_died_elsewhere_is_loaded_after_its_lease(
    valkey_url: str, prefix: str, cache: Cache
) -> None:
    async with cache_on(valkey_url, prefix, lease_s=3) as short:
        assert await short.agents.lease("a1") is not None
    load = LoaderOfMany(a1=1, a2=2)
    assert await cache.agents.get_or_load_many(["a1", "a2"], load) == {"a1": 1, "a2": 2}
    assert load.calls == [["a2"], ["a1"]]


async def test_a_failing_loader_raises_and_frees_the_leases(cache: Cache, other: Cache) -> None:
    async def fail(_ids: list[str]) -> dict[str, Any]:
        raise LookupError

    with pytest.raises(LookupError):
        await cache.agents.get_or_load_many(["a1", "a2"], fail)
    load = LoaderOfMany(a1=1, a2=2)
    assert await other.agents.get_or_load_many(["a1", "a2"], load) == {"a1": 1, "a2": 2}
    assert len(load.calls) == 1


async def test_a_loader_of_many_returns_a_mapping(cache: Cache) -> None:
    async def wrong(ids: list[str]) -> Any:
        return ids

    with pytest.raises(TypeError, match="mapping of id to value, not list"):
        await cache.agents.get_or_load_many(["a1"], wrong)


async def test_a_canceled_call_cancels_its_loader(cache: Cache, other: Cache) -> None:
    ended = asyncio.Event()
    started = asyncio.Event()

    async def load(_ids: list[str]) -> dict[str, Any]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return {}

    call = asyncio.create_task(cache.agents.get_or_load_many(["a1", "a2"], load))
    await started.wait()
    call.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([call])
        await ended.wait()
    assert call.cancelled()
    assert await other.agents.get_or_load_many(["a1"], LoaderOfMany(a1=1)) == {"a1": 1}


async def test_a_slow_loader_of_many_is_canceled(cache: Cache) -> None:
    load = LoaderOfMany(a1=1)
    load.go.clear()
    with pytest.raises(LoaderTimeout):
        await cache.agents.get_or_load_many(["a1", "a2"], load, loader_timeout_s=0.05)


@pytest.mark.parametrize("how", ["away", "disabled"])
async def test_without_a_server_the_loader_gets_every_id(
    valkey_url: str, prefix: str, how: str
) -> None:
    async with cache_on(valkey_url, prefix, enabled=how == "away") as cache:
        await cache.agents.set("a1", 1)
        if how == "away":
            cache.components.entries.connection.trip(Away("the test says so"))
        load = LoaderOfMany(a1="one", a2="two")
        found = await cache.agents.get_or_load_many(["a1", "a2", "a3"], load)
        assert found == {"a1": "one", "a2": "two"}
        assert load.calls == [["a1", "a2", "a3"]]


async def test_a_round_is_over_for_those_who_come_later() -> None:
    load = LoaderOfMany(a1=1, a2=2, a3=3)
    batch = LoadBatch(load, ["a1", "a2", "a3"])
    first = [asyncio.create_task(batch.load(i)) for i in ("a1", "a2")]
    await asyncio.sleep(0)
    assert not load.started.is_set()
    batch.decided("a3")
    assert await asyncio.gather(*first) == [1, 2]
    assert await batch.load("a3") == 3
    assert load.calls == [["a1", "a2"], ["a3"]]
