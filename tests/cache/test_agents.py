"""`cache.agents` against a real server: reads, loads, leases, TTLs, outages."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from cache import Cache, LoaderTimeout, NotEncodable
from cache.connection.protocol import Away
from tests.support.caches import Loader, cache_on
from tests.support.wait import eventually

pytestmark = pytest.mark.integration

STATE = {"id": "a1", "name": "Ada", "memory": [1, 2.5, None, True, "ü"]}


class State(BaseModel):
    id: str
    tools: list[str] = []


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


@pytest.fixture
async def other(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    """A cache of the same prefix, as another process has one."""
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


async def test_what_was_set_is_read_by_another_process(cache: Cache, other: Cache) -> None:
    assert await cache.agents.set("a1", STATE)
    assert await other.agents.get("a1") == STATE


@pytest.mark.parametrize("value", [b"\x00\xff raw", {"a": [1]}, [1, 2], "text", 7, True, {}, b""])
async def test_values_come_back_as_they_were(cache: Cache, value: Any) -> None:
    await cache.agents.set("a1", value)
    found = await cache.agents.get("a1")
    assert found == value
    assert type(found) is type(value)


async def test_a_model_comes_back_as_a_model(cache: Cache) -> None:
    await cache.agents.set("a1", State(id="a1", tools=["t"]))
    assert await cache.agents.get("a1") == State(id="a1", tools=["t"])


async def test_a_model_is_read_where_its_class_is_named(cache: Cache, other: Cache) -> None:
    await cache.agents.set("a1", State(id="a1"))
    assert await other.agents.get("a1") is None
    assert await other.agents.get("a1", model=State) == State(id="a1")
    other.register(State)
    assert await other.agents.get("a1") == State(id="a1")


async def test_a_model_of_an_unknown_class_is_loaded_once(cache: Cache, other: Cache) -> None:
    await cache.agents.set("a1", State(id="a1"))
    loader = Loader(State(id="a1"))
    assert await other.agents.get_or_load("a1", loader) == State(id="a1")
    assert await other.agents.get_or_load("a1", loader) == State(id="a1")
    assert loader.calls == 1


async def test_a_value_that_no_longer_fits_its_model_is_a_miss(cache: Cache) -> None:
    class Newer(BaseModel):
        id: int

    await cache.agents.set("a1", State(id="not a number"))
    assert await cache.agents.get("a1", model=Newer) is None
    assert cache.stats()["unreadable"] == 1


async def test_scopes_are_separate_and_invalidated_together(cache: Cache) -> None:
    await cache.agents.set("a1", 1)
    await cache.agents.set("a1", 2, scope="org-1:full")
    assert await cache.agents.get("a1") == 1
    assert await cache.agents.get("a1", scope="org-1:full") == 2
    await cache.agents.invalidate("a1")
    assert await cache.agents.get("a1") is None
    assert await cache.agents.get("a1", scope="org-1:full") is None


async def test_get_many_returns_the_hits(cache: Cache) -> None:
    await cache.agents.set("a1", 1)
    await cache.agents.set("a3", 3)
    assert await cache.agents.get_many(["a1", "a2", "a3", "a1"]) == {"a1": 1, "a3": 3}


async def test_a_miss_runs_the_loader_and_a_hit_does_not(cache: Cache) -> None:
    loader = Loader(STATE)
    assert await cache.agents.get_or_load("a1", loader) == STATE
    assert await cache.agents.get_or_load("a1", loader) == STATE
    assert loader.calls == 1


async def test_none_is_stored_for_the_negative_ttl(cache: Cache, client: Any) -> None:
    loader = Loader(None)
    assert await cache.agents.get_or_load("a1", loader) is None
    assert await cache.agents.get_or_load("a1", loader) is None
    assert loader.calls == 1
    left_ms = await client.pttl(cache.components.keys.agent("a1"))
    assert 0 < left_ms <= 10_000


async def test_a_value_ends_with_its_ttl(cache: Cache) -> None:
    await cache.agents.set("a1", 1, ttl_s=0.05)

    async def gone() -> bool:
        return await cache.agents.get("a1") is None

    assert await eventually(gone)


async def test_a_short_ttl_ends_while_another_scope_lives_on(cache: Cache) -> None:
    await cache.agents.set("a1", 1, ttl_s=60, scope="long")
    await cache.agents.set("a1", 2, ttl_s=0.05, scope="short")

    async def gone() -> bool:
        return await cache.agents.get("a1", scope="short") is None

    assert await eventually(gone)
    assert await cache.agents.get("a1", scope="long") == 1


async def test_ttls_are_jittered(cache: Cache, client: Any) -> None:
    for number in range(20):
        await cache.agents.set(f"a{number}", 1, ttl_s=100)
    lives = [await client.pttl(cache.components.keys.agent(f"a{n}")) for n in range(20)]
    assert all(90_000 - 5000 < life <= 100_000 for life in lives)
    assert max(lives) - min(lives) > 1000


async def test_fill_after_invalidation_is_refused(cache: Cache, other: Cache) -> None:
    lease = await cache.agents.lease("a1")
    assert lease is not None
    await other.agents.invalidate("a1")
    assert await cache.agents.fill("a1", STATE, lease) is False
    assert await cache.agents.get("a1") is None


async def test_only_one_holds_the_lease(cache: Cache, other: Cache) -> None:
    lease = await cache.agents.lease("a1")
    assert await other.agents.lease("a1") is None
    assert lease is not None
    assert await cache.agents.fill("a1", STATE, lease)
    assert await other.agents.get("a1") == STATE


async def test_a_slow_loader_does_not_overwrite_a_set(cache: Cache, other: Cache) -> None:
    loader = Loader("old")
    loader.hold()
    load = asyncio.create_task(cache.agents.get_or_load("a1", loader))
    await loader.started.wait()
    await other.agents.set("a1", "new")
    loader.go.set()
    await load
    assert await cache.agents.get("a1") == "new"


async def test_a_caller_after_an_invalidation_joins_no_older_load(
    cache: Cache, other: Cache
) -> None:
    old, new = Loader("old"), Loader("new")
    old.hold()
    first = asyncio.create_task(cache.agents.get_or_load("a1", old))
    await old.started.wait()
    await other.agents.invalidate("a1")  # this process does not learn of it
    late = asyncio.create_task(cache.agents.get_or_load("a1", new))
    await eventually(lambda: _joined(cache))
    old.go.set()
    assert await late == "new"
    assert await first == "old"  # it asked before the write
    assert await cache.agents.get("a1") in {"new", None}


async def _joined(cache: Cache) -> bool:
    return cache.stats()["joined"] >= 1


async def test_nobody_joins_a_load_after_a_local_invalidation(cache: Cache) -> None:
    old, new = Loader("old"), Loader("new")
    old.hold()
    first = asyncio.create_task(cache.agents.get_or_load("a1", old))
    await old.started.wait()
    await cache.agents.invalidate("a1")
    assert await cache.agents.get_or_load("a1", new) == "new"
    old.go.set()
    await first
    assert await cache.agents.get("a1") == "new"


async def test_many_callers_share_one_loader(cache: Cache, other: Cache) -> None:
    loader = Loader(STATE)
    calls = [c.agents.get_or_load("a1", loader) for c in (cache, other) for _ in range(100)]
    assert await asyncio.gather(*calls) == [STATE] * 200
    assert loader.calls == 1


@pytest.mark.parametrize("value", [{"tags": ["x"]}, ["x"], State(id="a1", tools=["x"])], ids=repr)
@pytest.mark.parametrize("how", ["joined", "outage", "write", "waited"])
async def test_callers_of_one_load_share_no_mutable_value(
    cache: Cache, other: Cache, how: str, value: Any
) -> None:
    """Nor with the loader, which may keep what it returned."""
    expected = copy.deepcopy(value)
    loader = Loader(value)
    loader.hold()
    if how == "outage":
        cache.components.entries.connection.trip(Away("the test says so"))
    if how == "write":
        await cache.begin_write(agents=["a1"])
    if how == "waited":
        first = asyncio.create_task(other.agents.get_or_load("a1", loader))
        await loader.started.wait()
    calls = [
        asyncio.create_task(cache.agents.get_or_load("a1", loader, model=type(value)))
        if isinstance(value, State)
        else asyncio.create_task(cache.agents.get_or_load("a1", loader))
        for _ in range(3)
    ]
    await eventually(lambda: _joined(cache))
    loader.go.set()
    got = [*await asyncio.gather(*calls), await cache.agents.get_or_load("a1", loader)]
    if how == "waited":
        got.append(await first)
    assert got == [expected] * len(got)
    parts = [part for found in (*got, value) for part in (found, *_mutable_parts(found))]
    assert len({id(part) for part in parts}) == len(parts)


def _mutable_parts(value: Any) -> list[Any]:
    if isinstance(value, State):
        return [value.tools]
    return [value["tags"]] if isinstance(value, dict) else []


async def test_a_loaded_value_has_the_types_of_a_stored_one(cache: Cache) -> None:
    for _ in range(2):
        assert await cache.agents.get_or_load("a1", Loader({"t": (1, 2)})) == {"t": [1, 2]}


async def test_a_waiter_is_woken_when_the_holder_stores(cache: Cache, other: Cache) -> None:
    loader = Loader("value")
    loader.hold()
    first = asyncio.create_task(cache.agents.get_or_load("a1", loader))
    await loader.started.wait()
    waiter = asyncio.create_task(other.agents.get_or_load("a1", Loader("never")))

    async def waiting() -> bool:
        return other.stats()["waits"] >= 1

    await eventually(waiting)
    loader.go.set()
    assert await first == await waiter == "value"


async def test_a_dead_holder_is_replaced_within_its_lease(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix, lease_s=0.3) as cache:
        assert await cache.agents.lease("a1") is not None  # and never filled
        for key in await cache.client.keys(f"{prefix}*:lease:*"):
            assert await cache.client.pttl(key) <= 300
        assert await cache.agents.get_or_load("a1", Loader("value")) == "value"


async def test_a_running_loader_keeps_its_lease(valkey_url: str, prefix: str) -> None:
    lease_s = 5  # a busy machine must be able to renew it
    async with (
        cache_on(valkey_url, prefix, lease_s=lease_s) as cache,
        cache_on(valkey_url, prefix, lease_s=lease_s) as other,
    ):
        loader, second = Loader("value"), Loader("second")
        loader.hold()
        first = asyncio.create_task(cache.agents.get_or_load("a1", loader))
        await loader.started.wait()
        waiter = asyncio.create_task(other.agents.get_or_load("a1", second))
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def waited_past_the_lease() -> bool:
            return loop.time() > start + lease_s + 0.5

        await eventually(waited_past_the_lease)
        loader.go.set()
        assert await waiter == await first == "value"
        assert second.calls == 0


async def test_a_failed_load_is_raised_and_the_next_caller_loads(cache: Cache) -> None:
    with pytest.raises(LookupError):
        await cache.agents.get_or_load("a1", Loader(LookupError("no such agent")))
    assert await cache.agents.get_or_load("a1", Loader("value")) == "value"


async def test_a_canceled_caller_does_not_cancel_the_others(cache: Cache) -> None:
    loader = Loader("value")
    loader.hold()
    first = asyncio.create_task(cache.agents.get_or_load("a1", loader))
    await loader.started.wait()
    second = asyncio.create_task(cache.agents.get_or_load("a1", Loader("other")))
    await eventually(lambda: _joined(cache))
    first.cancel()
    loader.go.set()
    assert await second in {"value", "other"}


async def test_a_load_without_waiters_is_canceled_and_releases_its_lease(
    valkey_url: str, prefix: str, other: Cache
) -> None:
    async with cache_on(valkey_url, prefix, lease_s=60) as cache:
        loader = Loader("value")
        loader.hold()
        call = asyncio.create_task(cache.agents.get_or_load("a1", loader))
        await loader.started.wait()
        call.cancel()

        async def free() -> bool:
            return await other.agents.lease("a1") is not None

        assert await eventually(free)


async def test_a_loader_past_its_hard_limit_is_an_error(cache: Cache) -> None:
    loader = Loader("value")
    loader.hold()
    with pytest.raises(LoaderTimeout):
        await cache.agents.get_or_load("a1", loader, loader_timeout_s=0.01)


async def _expired(cache: Cache, agent_id: str, ttl_s: float = 0.05) -> None:
    await cache.agents.get_or_load(agent_id, Loader("stale"), ttl_s=ttl_s, stale_if_error_s=60)

    async def gone() -> bool:
        return await cache.agents.get(agent_id) is None

    await eventually(gone)


async def test_an_expired_value_is_served_only_on_request(cache: Cache) -> None:
    await _expired(cache, "a1")
    failing = Loader(RuntimeError("database away"))
    assert await cache.agents.get_or_load("a1", failing, stale_if_error_s=60) == "stale"
    with pytest.raises(RuntimeError):
        await cache.agents.get_or_load("a1", failing)
    assert cache.stats()["stale_served"] == 1


async def test_an_invalidated_value_is_never_served_as_stale(cache: Cache) -> None:
    await _expired(cache, "a1")
    await cache.agents.invalidate("a1")
    with pytest.raises(RuntimeError):
        await cache.agents.get_or_load("a1", Loader(RuntimeError()), stale_if_error_s=60)


async def test_the_soft_timeout_serves_stale_and_the_load_goes_on(
    cache: Cache,
) -> None:
    await _expired(cache, "a1")
    loader = Loader("fresh")
    loader.hold()
    got = await cache.agents.get_or_load(
        "a1", loader, stale_if_error_s=60, soft_timeout_s=0.01, ttl_s=60
    )
    assert got == "stale"
    loader.go.set()

    async def refreshed() -> bool:
        return bool(await cache.agents.get("a1") == "fresh")

    assert await eventually(refreshed)


async def test_a_hot_value_is_refreshed_before_its_end(valkey_url: str, prefix: str) -> None:
    # So large that every random number leads to a refresh.
    async with cache_on(valkey_url, prefix, early_refresh_beta=1e15) as cache:
        slow = Loader("first")
        slow.hold()
        load = asyncio.create_task(cache.agents.get_or_load("a1", slow))
        await slow.started.wait()
        slow.go.set()
        await load
        loader = Loader("second")
        assert await cache.agents.get_or_load("a1", loader) == "first"

        async def refreshed() -> bool:
            return bool(await cache.agents.get("a1") == "second")

        assert await eventually(refreshed)
        assert cache.stats()["early_refreshes"] == 1


async def test_a_value_over_the_limit_is_returned_but_not_stored(
    valkey_url: str, prefix: str
) -> None:
    async with cache_on(valkey_url, prefix, max_value_bytes=2048) as cache:
        assert await cache.agents.get_or_load("a1", Loader(b"x" * 4096)) == b"x" * 4096
        assert await cache.agents.get("a1") is None
        assert await cache.agents.set("a1", b"x" * 4096) is False
        assert cache.stats()["too_large"] == 2


async def test_a_set_that_is_refused_leaves_nothing_older(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix, max_value_bytes=2048) as cache:
        await cache.agents.set("a1", "old")
        assert await cache.agents.set("a1", b"x" * 4096) is False
        assert await cache.agents.get("a1") is None


async def test_a_value_without_a_safe_encoding_is_returned(cache: Cache) -> None:
    value = {"f": object()}
    assert await cache.agents.get_or_load("a1", Loader(value)) is value
    with pytest.raises(NotEncodable):
        await cache.agents.set("a1", value)
    assert await cache.agents.lease("a1") is not None  # the refused set holds nothing


@pytest.mark.parametrize("organisation", [None, "o1"])
async def test_a_hit_costs_one_get_and_no_script(
    cache: Cache, client: Any, organisation: str | None
) -> None:
    await cache.agents.set("a1", STATE, organisation=organisation)
    await client.config_resetstat()
    for _ in range(10):
        call = cache.agents.get_or_load("a1", Loader("never"), organisation=organisation)
        assert await call == STATE
    used = await client.info("commandstats")
    assert used["cmdstat_mget"]["calls"] == 10
    assert {name for name in used if name != "cmdstat_info"} <= {
        "cmdstat_mget", "cmdstat_config|resetstat",
    }  # fmt: skip


async def test_every_key_has_an_end(cache: Cache, client: Any, prefix: str) -> None:
    await cache.agents.get_or_load("a1", Loader(1), organisation="o1", depends_on=["block:b1"])
    await cache.agents.set("a2", 1)
    await cache.agents.invalidate("a2", "never seen")
    await cache.agents.invalidate_dependency("block:b1", "block:none")
    await cache.agents.sessions.set("a1", "s1", {"k": 1})
    await cache.messages.get_or_load("a1", Loader([{"id": "m", "sequence_id": 1}]))
    keys = [key async for key in client.scan_iter(match=prefix + "*")]
    assert len(keys) >= 6
    for key in keys:
        assert 0 < await client.ttl(key) <= 604_800, key


async def test_a_disabled_cache_sends_every_read_to_its_loader(
    valkey_url: str, prefix: str, client: Any
) -> None:
    async with cache_on(valkey_url, prefix, enabled=False) as cache:
        loader = Loader("value")
        for _ in range(3):
            assert await cache.agents.get_or_load("a1", loader) == "value"
        assert await cache.agents.set("a1", 1) is False
        await cache.agents.invalidate("a1")
        assert await cache.agents.get("a1") is None
        assert await cache.messages.list("a1") is None
        assert loader.calls == 3
    assert not [key async for key in client.scan_iter(match=prefix + "*")]


async def test_invalidating_an_agent_forgets_blocks_and_contexts(cache: Cache) -> None:
    await cache.agents.blocks.set("a1", "human", {"value": "x"})
    await cache.agents.contexts.get_or_load("a1", "digest", Loader(b"compiled"))
    assert await cache.agents.blocks.get("a1", "human") == {"value": "x"}
    assert await cache.agents.contexts.get("a1", "digest") == b"compiled"
    await cache.agents.invalidate("a1")
    assert await cache.agents.blocks.get("a1", "human") is None
    assert await cache.agents.contexts.get("a1", "digest") is None


async def test_a_read_renews_a_sessions_ttl(cache: Cache, client: Any) -> None:
    await cache.agents.sessions.set("a1", "s1", {"k": 1}, ttl_s=100)
    key = cache.components.keys.session("a1", "s1")
    await client.expire(key, 10)
    assert await cache.agents.sessions.get("a1", "s1") == {"k": 1}
    assert await client.ttl(key) > 90
    await cache.agents.invalidate("a1")
    assert await cache.agents.sessions.get("a1", "s1") == {"k": 1}
    assert await cache.agents.sessions.delete("a1", "s1")
    assert await cache.agents.sessions.get("a1", "s1") is None


async def test_warming_loads_missing_states_and_counts_failures(cache: Cache) -> None:
    await cache.agents.set("a1", "there")

    async def load(agent_id: str) -> str:
        if agent_id == "a3":
            raise LookupError
        return agent_id.upper()

    assert await cache.agents.warm(["a1", "a2", "a3"], load) == {"warmed": 2, "failed": 1}
    assert await cache.agents.get_many(["a1", "a2", "a3"]) == {"a1": "there", "a2": "A2"}


async def test_an_agents_stats_have_its_hits_and_its_size(cache: Cache) -> None:
    await cache.agents.get_or_load("a1", Loader(b"x" * 1000))
    await cache.agents.get("a1")
    stats = await cache.agents.stats("a1")
    assert (stats["hits"], stats["misses"], stats["loads"]) == (1, 1, 1)
    assert stats["bytes"] > 1000
    assert 0 < stats["ttl_s"] <= 600
    json.dumps(stats)


@pytest.mark.parametrize("agent_id", ["", "a}b", "{a"])
async def test_an_id_that_cannot_be_a_hash_tag_is_refused(cache: Cache, agent_id: str) -> None:
    with pytest.raises(ValueError, match="agent_id"):
        await cache.agents.get(agent_id)
    with pytest.raises(ValueError, match="agent_id"):
        await cache.messages.list(agent_id)


async def test_another_agents_value_is_a_miss(cache: Cache, client: Any, prefix: str) -> None:
    await cache.agents.set("a1", {"owner": "a1"})
    await cache.agents.sessions.set("a1", "s", {"owner": "a1"})
    async for key in client.scan_iter(match=f"{prefix}{{a1}}*"):
        await client.copy(key, key.replace(b"{a1}", b"{a2}"))
    assert await cache.agents.get("a2") is None
    assert await cache.agents.sessions.get("a2", "s") is None
    assert cache.stats()["unreadable"] == 2
    assert await cache.agents.get_or_load("a2", Loader({"owner": "a2"})) == {"owner": "a2"}
    assert await cache.agents.get("a1") == {"owner": "a1"}


@pytest.mark.parametrize("odd", ["\ud800", "agent\udfff"])
async def test_an_invalid_id_does_not_mix_up_states(cache: Cache, odd: str) -> None:
    for number in range(20):
        await cache.agents.set(f"a{number}", {"owner": number})

    async def read(number: int) -> Any:
        return await cache.agents.get(odd if number % 5 == 0 else f"a{number}")

    for _ in range(3):
        states = await asyncio.gather(*(read(n) for n in range(20)), return_exceptions=True)
        for number, state in enumerate(states):
            if number % 5 == 0:
                assert isinstance(state, ValueError)
            else:
                assert state == {"owner": number}
    assert cache.stats()["desynchronized"] == 0
