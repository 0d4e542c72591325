"""Races that many caches lose: stampedes, and old values stored after a write."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from cache import Cache
from tests.support.caches import Loader, cache_on

pytestmark = pytest.mark.faults

ROUNDS = 200
LOADER_S = 1.0


@pytest.mark.serial
async def test_400_tasks_in_2_processes_run_one_loader(
    valkey_url: str, prefix: str, client: Any
) -> None:
    words = ["-m", "tests.support.stampede", valkey_url, prefix, "200", "2", str(LOADER_S)]
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [(await process.communicate())[0] for process in processes]
    assert int(await client.get(prefix + "loads")) == 1, outputs
    assert all(json.loads(output)["wall_s"] <= 2 * LOADER_S for output in outputs)


class Database:
    """One row, and the cache's invalidation after each write."""

    def __init__(self) -> None:
        self.value = 0

    async def write(self, cache: Cache, agent_id: str) -> None:
        self.value += 1
        await cache.agents.invalidate(agent_id)


async def _race(reader: Cache, writer: Cache, agent_id: str, *, before: bool) -> bool:
    """True if a value from before the write is served after it."""
    database = Database()
    loader = Loader()
    loader.hold()
    if before:
        loader.value = database.value
        reading = asyncio.create_task(reader.agents.get_or_load(agent_id, loader))
        await loader.started.wait()
        await database.write(writer, agent_id)
    else:
        database.value += 1
        loader.value = database.value
        reading = asyncio.create_task(reader.agents.get_or_load(agent_id, loader))
        await loader.started.wait()
        await writer.agents.invalidate(agent_id)
    loader.go.set()
    await reading
    answers = [
        await cache.agents.get_or_load(agent_id, Loader(database.value))
        for cache in (reader, writer)
    ]
    return answers != [database.value] * 2


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_a_loader_never_stores_what_it_read_before_a_write(
    valkey_url: str, prefix: str, before: bool
) -> None:
    async with cache_on(valkey_url, prefix) as reader, cache_on(valkey_url, prefix) as writer:
        races = [_race(reader, writer, f"a{number}", before=before) for number in range(ROUNDS)]
        assert sum(await asyncio.gather(*races)) == 0


async def test_random_readers_never_get_what_is_older_than_a_write(
    valkey_url: str, prefix: str
) -> None:
    """Every answer is at least as new as the newest write that returned before the question."""
    async with cache_on(valkey_url, prefix) as first, cache_on(valkey_url, prefix) as second:
        database = Database()
        acknowledged = 0
        stale = 0
        hits = 0

        async def load() -> int:
            value = database.value
            for _ in range(value % 5):
                await asyncio.sleep(0)
            return value

        async def write(cache: Cache) -> None:
            nonlocal acknowledged
            for _ in range(200):
                database.value += 1
                mine = database.value
                await cache.agents.invalidate("a1")
                acknowledged = max(acknowledged, mine)
                for _ in range(mine % 7):
                    await asyncio.sleep(0)

        async def read(cache: Cache) -> None:
            nonlocal stale, hits
            while acknowledged < 400:
                least = acknowledged
                if await cache.agents.get_or_load("a1", load) < least:
                    stale += 1
                hits += 1

        caches = [first, second]
        readers = [asyncio.create_task(read(caches[n % 2])) for n in range(8)]
        await asyncio.gather(write(first), write(second))
        await asyncio.gather(*readers)
        assert stale == 0
        assert hits > 100
