"""The server dies, hangs, loses data and comes back: no caller fails, and nothing is stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from cache import Cache
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.protocol import Away
from tests.support.caches import Loader, cache_on
from tests.support.fault_proxy import fault_proxy
from tests.support.outages import FragileServer, fragile_server, running
from tests.support.servers import free_port
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

# Of a cache that meets a silent server: a busy one that answers is never so late.
TIMEOUT_S = 1.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FragileServer]:
    with fragile_server(tmp_path) as server:
        yield server


@pytest.fixture
async def cache(server: FragileServer, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(server.url, prefix, timeout_s=TIMEOUT_S) as cache:
        yield cache


async def _elapsed_ms(call: Any) -> float:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await call
    return (loop.time() - start) * 1000


async def _trusted_again(cache: Cache) -> None:
    async with asyncio.timeout(10):
        await cache.settled()


@pytest.mark.serial
@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_call_goes_to_its_loader_within_50_ms_of_an_outage(
    server: FragileServer, prefix: str, how: str
) -> None:
    """Measured in five processes' caches: the best is what it costs on an idle machine."""
    async with AsyncExitStack() as stack:
        caches = [
            await stack.enter_async_context(cache_on(server.url, prefix, timeout_s=0.04))
            for _ in range(5)
        ]
        for cache in caches:
            await cache.agents.get("a1")
        getattr(server, how)()
        first: list[float] = []
        second: list[float] = []
        for cache in caches:
            for ms in (first, second):
                ms.append(await _elapsed_ms(cache.agents.get_or_load("a1", Loader("loaded"))))
            assert cache.stats()["breaker_open"] == 1
            assert cache.stats()["trusted"] == 0
        assert min(first) < 50
        assert min(second) < 5


async def test_an_outage_is_a_miss_everywhere(cache: Cache, server: FragileServer) -> None:
    await cache.agents.set("a1", "cached")
    server.kill()
    assert await cache.agents.get("a1") is None
    assert await cache.agents.get_many(["a1"]) == {}
    assert await cache.agents.set("a1", "new") is False
    assert await cache.agents.lease("a1") is None
    assert await cache.agents.blocks.get("a1", "human") is None
    assert await cache.agents.sessions.get("a1", "s") is None
    assert await cache.agents.sessions.set("a1", "s", 1) is False
    assert await cache.agents.sessions.delete("a1", "s") is False
    assert await cache.messages.list("a1") is None
    assert await cache.messages.append("a1", [{"id": "m", "sequence_id": 1}], after=None) is False
    assert await cache.messages.get_or_load("a1", Loader([])) == []
    assert (await cache.agents.stats("a1"))["bytes"] is None
    await cache.agents.invalidate("a1")
    await cache.agents.invalidate_dependency("block:b1")
    await cache.agents.invalidate_organisation("o1")
    await cache.messages.invalidate("a1")
    await cache.invalidate_everything()


async def test_the_cache_opens_while_its_server_is_away(server: FragileServer, prefix: str) -> None:
    server.kill()
    async with cache_on(server.url, prefix) as cache:
        assert await cache.agents.get_or_load("a1", Loader("loaded")) == "loaded"
        server.start()
        await _trusted_again(cache)
        await cache.agents.get_or_load("a1", Loader("loaded"))
        assert await cache.agents.get("a1") == "loaded"


async def test_callers_of_an_outage_still_share_a_loader(
    cache: Cache, server: FragileServer
) -> None:
    server.kill()
    loader = Loader("loaded")
    loader.hold()
    calls = [asyncio.create_task(cache.agents.get_or_load("a1", loader)) for _ in range(50)]
    await loader.started.wait()
    loader.go.set()
    assert await asyncio.gather(*calls) == ["loaded"] * 50
    assert loader.calls <= 4


async def test_an_outages_invalidation_is_delivered_before_trust_returns(
    cache: Cache, server: FragileServer
) -> None:
    await cache.agents.set("a1", "old")
    server.freeze()
    await cache.agents.invalidate("a1")
    assert cache.stats()["invalidations_missed"] == 1
    server.thaw()
    seen = []
    while not cache.stats()["trusted"]:
        seen.append(await cache.agents.get_or_load("a1", Loader("new")))
    seen.append(await cache.agents.get_or_load("a1", Loader("new")))
    assert set(seen) == {"new"}


@pytest.mark.parametrize("rounds", [50])
async def test_a_server_killed_during_a_write_serves_nothing_stale(
    cache: Cache, server: FragileServer, prefix: str, rounds: int
) -> None:
    async with cache_on(server.url, prefix, timeout_s=TIMEOUT_S) as other:
        for number in range(rounds):
            agent = f"a{number}"
            await cache.agents.get_or_load(agent, Loader("old"))
            await other.agents.get_or_load(agent, Loader("old"))
            server.kill()
            await cache.agents.invalidate(agent)
            server.start()
            for reader in (cache, other):
                assert await reader.agents.get_or_load(agent, Loader("new")) == "new"
            await asyncio.gather(_trusted_again(cache), _trusted_again(other))
            for reader in (cache, other):
                assert await reader.agents.get_or_load(agent, Loader("new")) == "new"


async def test_values_that_a_restart_brings_back_are_not_served(
    cache: Cache, server: FragileServer, prefix: str
) -> None:
    await cache.agents.set("a1", "old")
    await cache.messages.get_or_load("a1", Loader([{"id": "m1", "sequence_id": 1}]))
    server.kill()
    server.start()

    async with cache_on(server.url, prefix) as newcomer:
        assert await newcomer.agents.get("a1") is None
        assert await newcomer.messages.list("a1", limit=1) is None
    await _trusted_again(cache)
    await eventually(lambda: _reached(cache))
    assert await cache.agents.get("a1") is None
    assert await cache.messages.list("a1", limit=1) is None


async def _reached(cache: Cache) -> bool:
    return bool(cache.stats()["trusted"])


@pytest.mark.parametrize("how", ["restart", "flush"])
async def test_the_end_of_a_write_makes_up_for_a_lost_intent(
    cache: Cache, server: FragileServer, prefix: str, how: str
) -> None:
    """Although the writer's breaker is still open."""
    async with cache_on(server.url, prefix) as other:
        token = await cache.begin_write(agents=["a1"])
        await cache.components.entries.connection.execute("FLUSHALL")
        if how == "restart":
            server.kill()
            server.start()
            await other.agents.get("a1")
            await _trusted_again(other)
        loader = Loader("old")
        loader.hold()
        reading = asyncio.create_task(other.agents.get_or_load("a1", loader))
        await loader.started.wait()
        cache.components.entries.connection.trip(Away("the test says so"))
        assert await cache.end_write(token) is True
        loader.go.set()
        await reading
        assert await other.agents.get("a1") is None


@pytest.mark.parametrize("change", ["invalidate", "write"])
async def test_a_lagging_replica_that_takes_over_brings_nothing_back(
    tmp_path: Path, prefix: str, change: str
) -> None:
    homes = [tmp_path / name for name in ("master", "replica")]
    for home in homes:
        home.mkdir()
    port = str(free_port())
    master = FragileServer(homes[0], "--port", port, "--repl-diskless-sync-delay", "0")
    replica = FragileServer(homes[1], "--replicaof", f"127.0.0.1 {port}")
    with running(master), running(replica):
        async with (
            fault_proxy(master.path) as proxy,
            cache_on(proxy.url, prefix) as cache,
            cache_on(proxy.url, prefix) as other,
            open_pool(replica.url, PoolOptions(), name="t") as direct,
        ):
            await cache.agents.set("a1", "old")
            await cache.messages.get_or_load("a1", Loader([{"id": "m1", "sequence_id": 1}]))

            async def copied() -> bool:
                return bool(await direct.exists(f"{prefix}{{a1}}:messages:state:default"))

            await eventually(copied)
            await direct.replicaof("NO", "ONE")  # from here on it lags
            if change == "invalidate":
                assert await cache.agents.invalidate("a1")
            else:
                token = await cache.begin_write(agents=["a1"])
            master.kill()
            proxy.lead_to(replica.path)
            assert await direct.exists(f"{prefix}{{a1}}")
            for reader in (cache, other):
                await reader.agents.get("a1")  # finds its connection gone
                await _trusted_again(reader)
                assert await reader.agents.get("a1") is None
                assert await reader.messages.list("a1", limit=1) is None
            if change == "write":
                assert not token.holds
                assert await cache.end_write(token)
            assert await other.agents.get_or_load("a1", Loader("new")) == "new"
            assert await cache.agents.get("a1") == "new"


async def test_a_master_that_takes_over_again_brings_nothing_back(
    tmp_path: Path, prefix: str
) -> None:
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    ports = [str(free_port()), str(free_port())]
    quick = ("--repl-diskless-sync-delay", "0")
    first = FragileServer(homes[0], "--port", ports[0], *quick)
    second = FragileServer(
        homes[1], "--port", ports[1], "--replicaof", f"127.0.0.1 {ports[0]}", *quick
    )
    with running(first), running(second):
        async with (
            cache_on(first.url, prefix) as cache,
            open_pool(first.url, PoolOptions(), name="t") as one,
            open_pool(second.url, PoolOptions(), name="t") as two,
        ):
            await cache.agents.set("a1", "old")

            async def is_on(server: Any) -> bool:
                return bool(await server.exists(f"{prefix}{{a1}}"))

            await eventually(lambda: is_on(two), deadline_s=30)
            await two.replicaof("NO", "ONE")  # from here on it lags
            assert await cache.agents.invalidate("a1")
            await one.replicaof("127.0.0.1", ports[1])
            await eventually(lambda: is_on(one), deadline_s=30)
            await one.replicaof("NO", "ONE")

            async with cache_on(first.url, prefix) as other:
                assert await other.agents.get("a1") is None

            # A connection that has survived all this asks again after a second.
            async def is_gone() -> bool:
                return await cache.agents.get("a1") is None

            await eventually(is_gone, deadline_s=30)
            assert await is_on(one)
            assert cache.stats()["outages"] == 0


async def test_processes_agree_on_the_run_at_the_first_value_of_another(
    tmp_path: Path, prefix: str
) -> None:
    homes = [tmp_path / name for name in ("master", "replica")]
    for home in homes:
        home.mkdir()
    port = str(free_port())
    master = FragileServer(homes[0], "--port", port, "--repl-diskless-sync-delay", "0")
    replica = FragileServer(homes[1], "--replicaof", f"127.0.0.1 {port}")
    with running(master):
        async with cache_on(master.url, prefix) as before:
            old = (await before.client.info("replication"))["master_replid"]
            page, state = Loader([{"id": "m1", "sequence_id": 1}]), Loader("state")
            with running(replica):

                async def changed() -> bool:  # as it does for the first replica
                    found = await before.client.info("replication")
                    return bool(found["master_replid"] != old)

                await eventually(changed, deadline_s=30)
                async with cache_on(master.url, prefix) as since:
                    for cache in (since, before, since, before):
                        assert await cache.agents.get_or_load("a1", state) == "state"
                        assert await cache.messages.get_or_load("a1", page, limit=1)
            assert (state.calls, page.calls) == (1, 1)


async def test_a_lost_append_takes_the_window_with_it(cache: Cache, server: FragileServer) -> None:
    await cache.messages.get_or_load("a1", Loader([{"id": "m1", "sequence_id": 1}]))
    server.freeze()
    assert await cache.messages.append("a1", [{"id": "m2", "sequence_id": 2}], after=1) is False
    server.thaw()
    await _trusted_again(cache)
    page = await cache.messages.list("a1", limit=1)
    assert page is None or page[0]["id"] == "m2"


async def test_flushall_costs_only_misses(cache: Cache, client: Any, server: FragileServer) -> None:
    lease = await cache.agents.lease("a1")
    await cache.agents.set("a2", "old")
    assert lease is not None
    await cache.components.entries.connection.execute("FLUSHALL")
    assert await cache.agents.fill("a1", "old", lease) is False
    assert await cache.agents.get("a2") is None
    assert await cache.agents.get_or_load("a1", Loader("new")) == "new"


async def test_a_cut_connection_is_dialed_again_without_a_miss(cache: Cache) -> None:
    await cache.agents.set("a1", "value")
    await cache.components.entries.connection.execute(
        "CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "yes"
    )
    connection = cache.components.entries.connection.unguarded
    connection.lose("cut by the test")  # type: ignore[attr-defined]
    assert await cache.agents.get("a1") == "value"
    assert cache.stats()["outages"] == 0


async def test_a_canceled_invalidation_is_still_delivered(
    cache: Cache, server: FragileServer
) -> None:
    await cache.agents.set("a1", "old")
    server.freeze()
    call = asyncio.create_task(cache.agents.invalidate("a1"))
    await eventually(lambda: _invalidating(cache))
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    server.thaw()
    await _trusted_again(cache)
    assert await cache.agents.get("a1") is None


async def _invalidating(cache: Cache) -> bool:
    return cache.stats()["invalidations"] == 1


async def test_all_kinds_of_invalidation_are_delivered_after_an_outage(
    cache: Cache, server: FragileServer
) -> None:
    await cache.agents.get_or_load("a1", Loader(1), depends_on=["block:b1"])
    await cache.agents.get_or_load("a2", Loader(1), organisation="o1")
    await cache.messages.get_or_load("a3", Loader([{"id": "m1", "sequence_id": 1}]))
    server.freeze()
    await cache.agents.invalidate_dependency("block:b1")
    await cache.agents.invalidate_organisation("o1")
    await cache.messages.invalidate("a3", conversation="default")
    server.thaw()
    await _trusted_again(cache)
    assert await cache.agents.get("a1") is None
    assert await cache.agents.get("a2", organisation="o1") is None
    assert await cache.messages.list("a3", limit=1) is None
    assert cache.stats()["invalidations_missed"] == 0


async def test_a_server_without_memory_costs_only_misses(tmp_path: Path, prefix: str) -> None:
    options = ("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    with fragile_server(tmp_path, *options) as server:
        async with cache_on(server.url, prefix, max_memory_share=0.0) as cache:
            await cache.agents.set("a1", "old", depends_on=["block:b1"])
            for number in range(200):
                await cache.agents.set(f"x{number}", b"x" * 50_000)
            assert cache.stats()["refused"] > 0
            assert await cache.agents.get_or_load("new", Loader("loaded")) == "loaded"
            assert await cache.agents.get("a1") == "old"
            await cache.agents.invalidate_dependency("block:b1")
            assert await cache.agents.get("a1") is None
            async with cache.writing(agents=["x0"]) as token:
                assert token.holds
                assert await cache.agents.get("x0") is None
            assert cache.stats()["invalidations_missed"] == 0
            assert cache.stats()["outages"] == 0


async def test_an_invalidation_missed_during_its_delivery_is_sent_again(
    valkey_url: str, prefix: str
) -> None:
    """Its reply is on the way when the agent is loaded, and written again."""
    async with cache_on(valkey_url, prefix) as cache, cache_on(valkey_url, prefix) as other:
        connection = cache.components.entries.connection
        redo, delivered = connection.redo, list[Any]()

        async def replied_late(change: Any) -> None:
            await redo(change)
            delivered.append(change)
            if len(delivered) == 1:
                await other.agents.set("a1", "old")
                assert not await cache.agents.invalidate("a1")

        connection.redo = replied_late
        connection.trip(Away("the test says so"))
        assert not await cache.agents.invalidate("a1")
        await _trusted_again(cache)
        assert await other.agents.get("a1") is None
        assert len(delivered) == 2
        assert cache.stats()["invalidations_missed"] == 0
