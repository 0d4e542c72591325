"""Where the cache shares the queue's server, which evicts nothing, it takes its share and no more."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cache import Cache, CacheOptions
from cache.connection.pool import PoolOptions, open_pool
from tests.support.queues import open_queue
from tests.support.servers import valkey
from tests.support.wait import eventually
from tests.support.workers import quick_settings

pytestmark = pytest.mark.integration

MOST = 16 * 2**20
JOBS = 200


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[str]:
    """A server with room for 16 MB that evicts nothing."""
    limits = ("--maxmemory", str(MOST), "--maxmemory-policy", "noeviction")
    with valkey(tmp_path, *limits) as port:
        yield f"redis://127.0.0.1:{port}/0"


async def used(client: Any) -> int:
    return int((await client.info("memory"))["used_memory"])


async def test_the_cache_fills_its_share_and_no_job_is_refused(shared: str) -> None:
    """Four times the share is offered by two processes' caches: every job is there, and one more."""
    options = CacheOptions(timeout_s=5)
    async with (
        open_pool(shared, PoolOptions(), name="test") as client,
        open_queue(quick_settings(shared)) as queue,
    ):
        jobs = [await queue.enqueue("anything", "x" * 500) for _ in range(JOBS)]
        async with Cache(client, options) as one, Cache(client, options) as other:
            await fill(one, other)
            assert one.stats()["without_room"] > 0
            assert other.stats()["without_room"] > 0
            assert await used(client) < 0.6 * MOST
        last = await queue.enqueue("anything")
        for job in (*jobs, last):
            assert (await job.status()).value == "queued"
        assert (await client.info("stats"))["evicted_keys"] == 0


async def others(client: Any) -> list[str]:
    """Store more than the cache's share of somebody else's, and return the names."""
    names = [f"other-{n}" for n in range(9)]
    for name in names:
        await client.set(name, b"x" * 1_000_000)
    return names


async def fill(*caches: Cache) -> None:
    """Offer agents, windows of messages and sessions, 30 MB of what cannot be compressed."""
    text = random.Random(7).randbytes(50_000).hex()
    for n in range(100):
        for number, cache in enumerate(caches):
            name = f"agent-{number}-{n}"
            assert await cache.agents.get_or_load(name, loader({"text": text})) == {"text": text}
            row = {"id": "m", "sequence_id": 1, "text": text}
            assert await cache.messages.get_or_load(name, loader([row])) == [row]
            await cache.agents.sessions.set(name, "s", text)


def loader(value: Any) -> Any:
    async def load() -> Any:
        return value

    return load


async def test_what_ends_makes_room_again(shared: str) -> None:
    options = CacheOptions(timeout_s=5)
    async with (
        open_pool(shared, PoolOptions(), name="test") as client,
        Cache(client, options) as cache,
    ):
        names = await others(client)
        assert await cache.agents.set("a", 1) is False
        await client.delete(*names)

        async def is_stored() -> bool:
            return await cache.agents.set("a", 1) and await cache.agents.get("a") == 1

        await eventually(is_stored, deadline_s=30)


async def test_a_server_that_cannot_be_asked_is_filled(shared: str) -> None:
    options = CacheOptions(timeout_s=5)
    async with open_pool(shared, PoolOptions(), name="test") as client:
        await client.execute_command("ACL", "SETUSER", "u", "on", ">pw", "~*", "&*", "+@all")
        url = shared.replace("://", "://u:pw@")
        async with open_pool(url, PoolOptions(), name="u") as weak, Cache(weak, options) as cache:
            assert await cache.agents.set("a", 1)
            await client.execute_command("ACL", "SETUSER", "u", "-info")
            await others(client)
            assert await cache.agents.set("b", 2)


async def test_a_server_that_evicts_is_filled(shared: str) -> None:
    options = CacheOptions(timeout_s=5)
    async with (
        open_pool(shared, PoolOptions(), name="test") as client,
        Cache(client, options) as cache,
    ):
        await others(client)
        await client.config_set("maxmemory-policy", "allkeys-lfu")
        assert await cache.agents.set("a", 1)


async def test_a_server_that_evicts_is_asked_once_a_minute(
    shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, clock = CacheOptions(timeout_s=5), [1000.0]
    monkeypatch.setattr("cache.room.time", SimpleNamespace(monotonic=lambda: clock[0]))

    async def asked(client: Any, cache: Cache) -> int:
        """In two minutes with a store each second."""
        await client.config_resetstat()
        for n in range(120):
            clock[0] += 1
            assert await cache.agents.set("a", n)
        return int((await client.info("commandstats"))["cmdstat_info"]["calls"])

    async with (
        open_pool(shared, PoolOptions(), name="test") as client,
        Cache(client, options) as cache,
    ):
        assert await asked(client, cache) >= 120
        await client.config_set("maxmemory-policy", "allkeys-lfu")
        assert await asked(client, cache) == 2
        await client.config_set("maxmemory", 0)
        await client.config_set("maxmemory-policy", "noeviction")
        assert await asked(client, cache) == 2
