"""Writes name what they change: the cache neither answers nor stores it until they have ended."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from cache import Cache, Invalidator, InvalidName, open_invalidator
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.protocol import Away
from cache.keys import intents_of
from cache.options import CacheOptions
from settings import Settings
from tests.support.caches import PATIENT_S, Loader, cache_on
from tests.support.wait import eventually

pytestmark = pytest.mark.integration

MESSAGES = [{"id": "m1", "sequence_id": 1}]
KINDS: dict[str, dict[str, Any]] = {
    "agent": {"agents": ["a1"]},
    "dependency": {"dependencies": ["block:b1"]},
    "organisation": {"organisations": ["o1"]},
    "conversation": {"conversations": [("a1", "default")]},
    "message": {"messages": [("o1", "m1")]},
}


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


@pytest.fixture
async def other(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


async def _load(cache: Cache, kind: str, loader: Loader) -> Any:
    if kind == "conversation":
        return await cache.messages.get_or_load("a1", loader, limit=1)
    if kind == "message":

        async def load(ids: list[str]) -> dict[str, Any]:
            return dict.fromkeys(ids, await loader())

        return (await cache.messages.get_or_load_many(["m1"], load, scope="o1"))["m1"]
    how: dict[str, Any] = {"organisation": "o1"} if kind == "organisation" else {}
    if kind == "dependency":
        how = {"depends_on": ["block:b1"]}
    return await cache.agents.get_or_load("a1", loader, **how)


async def _stored(cache: Cache, kind: str) -> bool:
    if kind == "conversation":
        return await cache.messages.list("a1", limit=1) is not None
    if kind == "message":
        return bool(await cache.messages.get_many(["m1"], scope="o1"))
    organisation = "o1" if kind == "organisation" else None
    return await cache.agents.get("a1", organisation=organisation) is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_served_or_stored_during_a_write(
    cache: Cache, other: Cache, kind: str
) -> None:
    value = MESSAGES if kind == "conversation" else "value"
    await _load(other, kind, Loader(value))
    assert await _stored(other, kind)
    async with cache.writing(**KINDS[kind]) as token:
        assert token.holds
        for reader in (cache, other):
            loader = Loader(value)
            assert not await _stored(reader, kind)
            assert await _load(reader, kind, loader) == value
            assert loader.calls == 1
            assert not await _stored(reader, kind)
    loader = Loader(value)
    for reader in (other, cache, other):
        assert await _load(reader, kind, loader) == value
    assert loader.calls == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begun", ["before", "during"])
async def test_a_load_from_before_the_end_of_a_write_is_not_stored(
    cache: Cache, other: Cache, kind: str, begun: str
) -> None:
    loader = Loader(MESSAGES if kind == "conversation" else "old")
    loader.hold()
    token = await cache.begin_write(**KINDS[kind]) if begun == "during" else None
    loading = asyncio.create_task(_load(other, kind, loader))
    await loader.started.wait()
    if token is None:
        token = await cache.begin_write(**KINDS[kind])
    assert await cache.end_write(token)
    loader.go.set()
    await loading
    assert not await _stored(other, kind)


async def test_a_dependencys_agents_are_not_served_during_a_write(
    cache: Cache, other: Cache
) -> None:
    """Nor any other scope of them, as after an invalidation."""
    await other.agents.get_or_load("a1", Loader(1), depends_on=["block:b1"])
    await other.agents.get_or_load("a1", Loader(1), scope="brief")
    await other.agents.get_or_load("a2", Loader(2))
    async with cache.writing(dependencies=["block:b1"]):
        assert await other.agents.get_many(["a1", "a2"]) == {"a2": 2}
        assert await other.agents.get_or_load("a1", Loader(1), scope="brief") == 1
        assert await other.agents.get("a1", scope="brief") is None
    await other.agents.get_or_load("a1", Loader(1), scope="brief")
    assert await other.agents.get("a1", scope="brief") == 1


async def test_a_failed_write_ends_its_intent(cache: Cache, other: Cache) -> None:
    with pytest.raises(LookupError):
        async with cache.writing(agents=["a1"]):
            raise LookupError
    await other.agents.get_or_load("a1", Loader(1))
    assert await other.agents.get("a1") == 1


async def test_the_longest_of_two_writes_counts(cache: Cache, other: Cache) -> None:
    names: dict[str, Any] = {"agents": ["a1"], "dependencies": ["block:b1"]}
    await other.agents.get_or_load("a2", Loader(1), depends_on=["block:b1"])
    first, second = await cache.begin_write(**names), await other.begin_write(**names)
    assert await cache.end_write(first)
    for agent in ("a1", "a2"):
        await other.agents.get_or_load(agent, Loader(1), depends_on=["block:b1"])
    assert await other.agents.get_many(["a1", "a2"]) == {}
    assert await other.end_write(second)
    for agent in ("a1", "a2"):
        await other.agents.get_or_load(agent, Loader(1), depends_on=["block:b1"])
    assert await other.agents.get_many(["a1", "a2"]) == {"a1": 1, "a2": 1}


async def test_a_set_during_a_write_is_refused(cache: Cache, other: Cache) -> None:
    async with cache.writing(agents=["a1"]):
        assert await other.agents.set("a1", "old") is False
    assert await other.agents.get("a1") is None


async def test_an_intent_outlives_its_process_by_its_ttl(
    valkey_url: str, prefix: str, other: Cache
) -> None:
    async with cache_on(valkey_url, prefix, intent_s=3) as cache:
        await cache.begin_write(agents=["a1"])  # dropped: nobody ends it
    await other.agents.get_or_load("a1", Loader(1))
    assert await other.agents.get("a1") is None

    async def stored() -> bool:
        await other.agents.get_or_load("a1", Loader(1))
        return await other.agents.get("a1") is not None

    await eventually(stored)


async def test_a_token_that_was_dropped_is_not_renewed(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix, intent_s=3) as cache:
        token = await cache.begin_write(agents=["a1"])
        assert token.holds
        del token
        gc.collect()

        async def stored() -> bool:
            await cache.agents.get_or_load("a1", Loader(1))
            return await cache.agents.get("a1") is not None

        await eventually(stored)


async def test_a_canceled_beginning_leaves_no_intent(cache: Cache, other: Cache) -> None:
    call = asyncio.create_task(cache.begin_write(agents=["a1"]))
    await asyncio.sleep(0)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call

    async def stored() -> bool:
        await other.agents.get_or_load("a1", Loader(1))
        return await other.agents.get("a1") is not None

    await eventually(stored)
    assert cache.stats()["trusted"] == 1


async def test_a_canceled_end_lifts_the_intent(cache: Cache, other: Cache) -> None:
    token = await cache.begin_write(agents=["a1"])
    call = asyncio.create_task(cache.end_write(token))
    await asyncio.sleep(0)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call

    async def stored() -> bool:
        await other.agents.get_or_load("a1", Loader(1))
        return await other.agents.get("a1") is not None

    await eventually(stored)


async def test_fifty_names_begin_and_end_in_one_round_trip_each(cache: Cache, client: Any) -> None:
    async with cache.writing(agents=["warm"]):
        pass
    before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    async with cache.writing(agents=[f"a{n}" for n in range(50)], dependencies=["block:b1"]):
        pass
    assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] - before == 2


async def test_an_idle_process_sends_nothing(valkey_url: str, prefix: str, client: Any) -> None:
    async with cache_on(valkey_url, prefix, intent_s=0.1, totals_interval_s=3600) as cache:
        async with cache.writing(agents=["a1"]):
            pass
        names = await client.client_list()
        mine = [row for row in names if row["name"] == "test-cache"]
        assert len(mine) == 1  # no connection but that of the commands
        before = (await client.info("stats"))["total_commands_processed"]

        async def later() -> bool:
            rows = await client.client_list(client_id=[mine[0]["id"]])
            return int(rows[0]["idle"]) >= 1

        looks = 0

        async def counted() -> bool:
            nonlocal looks
            looks += 1
            return await later()

        await eventually(counted)
        after = (await client.info("stats"))["total_commands_processed"]
        assert after - before == looks + 1


async def test_an_empty_write_needs_no_server(cache: Cache) -> None:
    cache.components.entries.connection.trip(Away("the test says so"))
    async with cache.writing() as token:
        assert token.holds
    assert await cache.end_write(token)


@pytest.mark.parametrize(
    "names",
    [
        {"agents": "a1"},
        {"agents": ["a{1"]},
        {"dependencies": [""]},
        {"organisations": [None]},
        {"conversations": ["a1"]},
        {"conversations": [("a1", "\ud800")]},
        {"messages": ["m1"]},
        {"messages": [("o1", "")]},
    ],
    ids=ascii,
)
async def test_a_wrong_name_is_refused_before_the_write(
    cache: Cache, names: dict[str, Any]
) -> None:
    with pytest.raises(InvalidName):
        await cache.begin_write(**names)
    with pytest.raises(InvalidName):
        await cache.invalidate(**names)
    assert cache.stats()["intents"] == 0


async def test_an_invalidator_writes_beside_caches(valkey_url: str, cache: Cache) -> None:
    options = CacheOptions(prefix=cache.options.prefix, timeout_s=PATIENT_S)
    await cache.agents.get_or_load("a1", Loader(1))
    async with (
        open_pool(valkey_url, PoolOptions(max_connections=1), name="t") as client,
        Invalidator(client, options) as invalidator,
    ):
        async with invalidator.writing(agents=["a1"]):
            assert await cache.agents.get("a1") is None
        await cache.agents.get_or_load("a1", Loader(1))
        assert await invalidator.invalidate(agents=["a1"])
        assert await cache.agents.get("a1") is None


async def test_settings_open_an_invalidator(valkey_url: str) -> None:
    async with open_invalidator(Settings(redis_url=valkey_url, cache_intent_s=7)) as invalidator:
        token = await invalidator.begin_write(agents=["opened-by-settings"])
        key = intents_of("lc:{opened-by-settings}")
        assert 7000 < await invalidator.client.pttl(key) <= 127_000
        assert await invalidator.end_write(token)
        assert not await invalidator.client.exists(key)


async def test_a_disabled_cache_writes_without_a_server() -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0", use_agent_cache=False)
    async with open_invalidator(settings) as invalidator:
        async with invalidator.writing(agents=["a1"]) as token:
            assert token.holds
        assert await invalidator.invalidate(agents=["a1"])


def test_threads_have_caches_of_their_own(valkey_url: str, prefix: str) -> None:
    """Each in its event loop, with one server; what one writes, the others do not serve."""
    started = threading.Barrier(3, timeout=30)

    async def use(number: int) -> list[Any]:
        async with cache_on(valkey_url, prefix, compress_min_bytes=64) as cache:
            await asyncio.to_thread(started.wait)
            for turn in range(20):
                name, value = f"a{turn % 3}", {"text": "x" * 5000, "by": number}
                async with cache.writing(agents=[name]):
                    assert await cache.agents.get(name) is None
                found = await cache.agents.get_or_load(name, Loader(value))
                assert found["text"] == value["text"]
            await asyncio.to_thread(started.wait)
            return [await cache.agents.get_or_load(f"a{n}", Loader(number)) for n in range(3)]

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda number: asyncio.run(use(number)), range(3)))
    assert answers[0] == answers[1] == answers[2]


async def test_a_cache_of_another_event_loop_is_refused(cache: Cache) -> None:
    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="open one in each loop"):
            asyncio.run(cache.agents.get("a1"))

    await cache.agents.set("a1", 1)
    await asyncio.to_thread(elsewhere)
    assert await cache.agents.get("a1") == 1
