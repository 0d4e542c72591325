"""`cache.messages` by id: many messages in one read, and nothing older than a write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from cache import Cache, InvalidName, NotEncodable
from cache.connection.protocol import Away
from tests.support.caches import Loader, cache_on
from tests.support.wait import eventually

pytestmark = pytest.mark.integration

ORG = "org-1"


class Message(BaseModel):
    id: str
    text: str


def rows(*ids: str, text: str = "hello") -> list[dict[str, str]]:
    return [{"id": i, "text": text} for i in ids]


async def load(ids: list[str]) -> dict[str, Any]:
    return {row["id"]: row for row in rows(*ids, text="loaded")}


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


@pytest.fixture
async def other(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


async def _text(cache: Cache, *ids: str) -> dict[str, str]:
    found = await cache.messages.get_many(ids, scope=ORG)
    return {i: message["text"] for i, message in found.items()}


async def test_messages_that_were_put_are_read_by_another_process(
    cache: Cache, other: Cache
) -> None:
    assert await cache.messages.put_many(rows("m1", "m2"), scope=ORG) == {"m1", "m2"}
    found = await other.messages.get_many(["m2", "m3", "m1", "m2"], scope=ORG)
    assert found == {row["id"]: row for row in rows("m2", "m1")}
    assert list(found) == ["m2", "m1"]
    assert other.stats()["message_hits"] == 2
    assert other.stats()["message_misses"] == 1


async def test_a_scope_reads_only_its_own_messages(cache: Cache) -> None:
    """Also of names that a key could take for another pair of scope and id."""
    for scope, id_ in [("a:b", "c"), ("a", "b:c"), ("a}", "b"), ("a", "}b")]:
        await cache.messages.put_many({id_: [scope, id_]}, scope=scope)
    for scope, id_ in [("a:b", "c"), ("a", "b:c"), ("a}", "b"), ("a", "}b")]:
        assert await cache.messages.get_many([id_], scope=scope) == {id_: [scope, id_]}
    assert await cache.messages.get_many(["b:c", "c"], scope="another") == {}


async def test_twenty_messages_are_read_by_one_mget(cache: Cache, client: Any) -> None:
    ids = [f"m{number}" for number in range(20)]
    await cache.messages.put_many(rows(*ids), scope=ORG)
    before = await client.info("commandstats")
    assert len(await cache.messages.get_many(ids, scope=ORG)) == 20
    assert len(await cache.messages.get_or_load_many(ids, load, scope=ORG)) == 20
    after = await client.info("commandstats")
    mgets = [info["cmdstat_mget"]["calls"] for info in (before, after)]
    assert mgets[1] - mgets[0] == 2
    await cache.messages.get_many([f"m{number}" for number in range(250)], scope=ORG)
    last = (await client.info("commandstats"))["cmdstat_mget"]["calls"]
    assert last - mgets[1] == 3


async def test_models_and_bytes_come_back_as_they_were(cache: Cache, other: Cache) -> None:
    message = Message(id="m1", text="hello")
    await cache.messages.put_many([message], scope=ORG)
    await cache.messages.put_many({"m2": b"raw"}, scope=ORG)
    assert await cache.messages.get_many(["m1", "m2"], scope=ORG) == {"m1": message, "m2": b"raw"}
    assert await other.messages.get_many(["m1"], scope=ORG, model=Message) == {"m1": message}


async def test_missing_messages_are_loaded_once_and_stored(cache: Cache, other: Cache) -> None:
    await cache.messages.put_many(rows("m1"), scope=ORG)
    asked: list[list[str]] = []

    async def some(ids: list[str]) -> dict[str, Any]:
        asked.append(sorted(ids))
        return await load([i for i in ids if i != "m3"])

    for reader in (other, cache):
        found = await reader.messages.get_or_load_many(["m3", "m2", "m1"], some, scope=ORG)
        assert {i: m["text"] for i, m in found.items()} == {"m2": "loaded", "m1": "hello"}
    assert asked == [["m2", "m3"], ["m3"]]
    assert other.stats()["message_hits"] == 1
    assert other.stats()["message_misses"] == 2


async def test_an_invalidated_message_is_not_served(cache: Cache, other: Cache) -> None:
    await cache.messages.put_many(rows("m1", "m2"), scope=ORG)
    assert await other.messages.invalidate_ids("m1", scope=ORG)
    assert await _text(cache, "m1", "m2") == {"m2": "hello"}
    assert await other.invalidate(messages=[(ORG, "m2")])
    assert await _text(cache, "m1", "m2") == {}
    await cache.messages.put_many(rows("m1"), scope=ORG)
    assert await other.invalidate_everything()
    assert await _text(cache, "m1") == {}


async def test_a_load_from_before_an_invalidation_is_not_stored(cache: Cache, other: Cache) -> None:
    loader = Loader({row["id"]: row for row in rows("m1", "m2", text="old")})
    loader.hold()
    loading = asyncio.create_task(
        cache.messages.get_or_load_many(["m1", "m2"], lambda _ids: loader(), scope=ORG)
    )
    await loader.started.wait()
    await other.messages.invalidate_ids("m1", scope=ORG)
    loader.go.set()
    await loading
    assert await _text(other, "m1", "m2") == {"m2": "old"}


@pytest.mark.parametrize("how", ["a write", "an invalidation", "a put"])
async def test_a_leased_put_is_refused_after_another_change(
    cache: Cache, other: Cache, how: str
) -> None:
    """m1 is created, and changed by another process before its creator puts it."""
    leases = await cache.messages.lease_many(["m1", "m2"], scope=ORG)
    assert leases.keys() == {"m1", "m2"}
    if how == "a write":
        async with other.writing(messages=[(ORG, "m1")]):
            pass
    elif how == "an invalidation":
        await other.messages.invalidate_ids("m1", scope=ORG)
    else:
        await other.messages.put_many(rows("m1", text="new"), scope=ORG)
    put = await cache.messages.put_many(rows("m1", "m2", text="old"), scope=ORG, leases=leases)
    assert put == {"m2"}
    assert await _text(other, "m1", "m2") == {"m2": "old"}


async def test_a_put_during_a_write_is_refused(cache: Cache, other: Cache) -> None:
    await cache.messages.put_many(rows("m1"), scope=ORG)
    async with other.writing(messages=[(ORG, "m1")]):
        assert await cache.messages.lease_many(["m1"], scope=ORG) == {}
        assert await cache.messages.put_many(rows("m1", "m2"), scope=ORG) == {"m2"}
    assert await _text(cache, "m1", "m2") == {"m2": "hello"}


async def test_a_put_refuses_the_loads_that_run(cache: Cache, other: Cache) -> None:
    loader = Loader({row["id"]: row for row in rows("m1", text="old")})
    loader.hold()
    loading = asyncio.create_task(
        cache.messages.get_or_load_many(["m1"], lambda _ids: loader(), scope=ORG)
    )
    await loader.started.wait()
    await other.messages.put_many(rows("m1", text="new"), scope=ORG)
    loader.go.set()
    await loading
    assert await _text(cache, "m1") == {"m1": "new"}


async def test_leases_that_are_not_used_are_given_back(cache: Cache, other: Cache) -> None:
    """The transaction was rolled back: nobody waits for a message that does not exist."""
    leases = await cache.messages.lease_many(["m1"], scope=ORG)
    assert await cache.messages.put_many([], scope=ORG, leases=leases) == set()
    lost = await cache.messages.put_many(rows("m1"), scope=ORG, leases=leases)
    assert lost == set()
    assert await other.messages.get_or_load_many(["m1"], load, scope=ORG)
    assert other.stats()["waits"] == 0


async def test_what_was_not_put_is_invalidated(cache: Cache, other: Cache) -> None:
    """Nothing older than what the caller has committed is served, although it is not stored."""
    await other.messages.put_many(rows("m1", "m2", text="old"), scope=ORG)
    big = {"m1": b"x" * (cache.options.max_value_bytes + 1), "m2": b"small"}
    assert await cache.messages.put_many(big, scope=ORG) == {"m2"}
    assert await other.messages.get_many(["m1", "m2"], scope=ORG) == {"m2": b"small"}
    with pytest.raises(NotEncodable):
        await cache.messages.put_many({"m1": b"fine", "m2": object()}, scope=ORG)
    assert await other.messages.get_many(["m1", "m2"], scope=ORG) == {}


async def test_a_message_needs_an_id(cache: Cache) -> None:
    with pytest.raises(InvalidName, match="must have an id"):
        await cache.messages.put_many([{"text": "hello"}], scope=ORG)


async def test_a_put_that_is_lost_is_made_up_for(cache: Cache, other: Cache) -> None:
    """The server is away for this process only; others may not serve older messages afterwards."""
    await other.messages.put_many(rows("m1", text="old"), scope=ORG)
    cache.components.entries.connection.trip(Away("the test says so"))
    assert await cache.messages.get_many(["m1"], scope=ORG) == {}
    assert await cache.messages.put_many(rows("m1", text="new"), scope=ORG) == set()
    found = await cache.messages.get_or_load_many(["m1"], load, scope=ORG)
    assert found["m1"]["text"] == "loaded"
    await cache.settled()

    async def gone() -> bool:
        return await _text(other, "m1") == {}

    await eventually(gone)


async def test_a_disabled_cache_keeps_no_messages(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix, enabled=False) as cache:
        assert await cache.messages.put_many(rows("m1"), scope=ORG) == set()
        assert await cache.messages.get_many(["m1"], scope=ORG) == {}
        assert await cache.messages.lease_many(["m1"], scope=ORG) == {}
        assert await cache.messages.invalidate_ids("m1", scope=ORG)
        found = await cache.messages.get_or_load_many(["m1"], load, scope=ORG)
        assert found["m1"]["text"] == "loaded"


async def test_messages_end_with_their_ttl(valkey_url: str, prefix: str, client: Any) -> None:
    async with cache_on(valkey_url, prefix, message_ttl_s=50) as cache:
        await cache.messages.put_many(rows("m1"), scope=ORG)
        key = cache.components.keys.message(ORG, "m1")
        for name in (key, key + ":body"):
            assert 0 < await client.pttl(name) <= 50_000
