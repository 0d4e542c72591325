"""What an operator's tools ask costs the queue's server the same, however many jobs are dead."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq.worker import func

from tests.support.engine import QUICK, burst
from tests.support.queues import queue_of
from tests.support.web import asking
from worker import JobQueue, Priority
from worker.cli.status import _read
from worker.errors import Permanent
from worker.keys import EngineKeys, QueueKeys

pytestmark = pytest.mark.integration

PATHS = ("/", "/dead", "/jobs", "/metrics", "/api/overview", "/api/stats", "/readyz")
_NOT_COUNTED = {"cmdstat_info", "cmdstat_config|resetstat"}


async def fails(ctx: dict[str, Any]) -> None:
    raise Permanent("as asked")


@pytest.fixture
def keys(prefix: str) -> QueueKeys:
    return QueueKeys(prefix)


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix)


async def bury(client: Any, prefix: str, *ids: str, **options: Any) -> None:
    """Let jobs die, each of another priority than the one before."""
    queue = queue_of(client, prefix)
    for at, id_ in enumerate(ids):
        await queue.enqueue("fails", job_id=id_, priority=list(Priority)[at % 4])
    chosen = replace(QUICK, **options)
    await burst(client, prefix, [func(fails, name="fails")], options=chosen)


async def add_letters(client: Any, keys: QueueKeys, first: int, count: int) -> None:
    """Dead letters, as a worker stores them."""
    now_ms = int(time.time() * 1000)
    numbers = range(first, first + count)
    async with client.pipeline(transaction=False) as pipe:
        for n in numbers:
            fields = {"name": "f", "queue": 1 + n % 4, "body": "x", "reason": "failed"}
            pipe.hset(keys.dead_job(f"d{n}"), mapping=fields)
        await pipe.execute()
    for at in range(first, first + count, 5000):
        some = range(at, min(at + 5000, first + count))
        await client.zadd(keys.dead, {f"d{n}": now_ms + n for n in some})
        await client.zadd(keys.dead_queues, {f"d{n}": 1 + n % 4 for n in some})


async def commands_of(client: Any, act: Callable[[], Awaitable[object]]) -> int:
    """The commands of the server for it, those of scripts included."""
    await client.config_resetstat()
    await act()
    stats = await client.info("commandstats")
    return sum(row["calls"] for name, row in stats.items() if name not in _NOT_COUNTED)


async def dead_of(queue: JobQueue) -> list[float]:
    """By priority."""
    return [row["dead"] for row in (await queue.stats()).values()]


async def test_10000_dead_letters_cost_a_reading_no_command_more(
    client: Any, queue: JobQueue, keys: QueueKeys
) -> None:
    found: list[dict[str, int]] = []
    # Those that run are counted by pages: the dead are on the first one.
    await client.zadd(EngineKeys(keys).running, {f"r{n}": n for n in range(600)})
    async with asking(queue) as web:

        async def ask(path: str) -> None:
            (await web.get(path)).raise_for_status()

        for first, count in ((0, 10), (10, 9990)):
            await add_letters(client, keys, first, count)
            calls = {}
            for path in PATHS:
                await ask(path)  # teaches the server its scripts
                calls[path] = await commands_of(client, lambda path=path: ask(path))  # type: ignore[misc]
            calls["status"] = await commands_of(client, lambda: _read(queue, 1))
            found.append(calls)
    # A page shows 50 dead letters of 10,000, and each costs a read.
    few, many = found
    assert many.pop("/dead") - few.pop("/dead") <= 2 * 50
    assert few == many
    assert await dead_of(queue) == [2500] * 4


async def test_dead_letters_are_counted_through_burial_and_removal(
    client: Any, queue: JobQueue, keys: QueueKeys, prefix: str
) -> None:
    async def assert_counts(*wanted: int) -> None:
        assert tuple(await dead_of(queue)) == wanted
        assert await client.zrange(keys.dead_queues, 0, -1) == sorted(
            await client.zrange(keys.dead, 0, -1), key=lambda id_: (int(id_[1:]) % 4, id_)
        )

    await bury(client, prefix, *(f"j{n}" for n in range(8)))
    await assert_counts(2, 2, 2, 2)
    assert await queue.dead.retry("j0") == await queue.dead.purge("j1") == 1
    await assert_counts(1, 1, 2, 2)
    # It is listed, but has expired.
    await client.delete(keys.dead_job("j2"))
    assert await queue.dead.retry("j2") == 0
    # Those over the cap go, the oldest first.
    left = [id_.decode() for id_ in await client.zrange(keys.dead, 0, -1)]
    await bury(client, prefix, "j8", dead_max=3)
    kept = [id_.decode() for id_ in await client.zrange(keys.dead, 0, -1)]
    assert set(kept) <= {*left, "j0", "j8"}
    assert len(kept) == 3
    assert sum(await dead_of(queue)) == await client.zcard(keys.dead_queues) == 3
    # Those that are too old go.
    await client.zadd(keys.dead, dict.fromkeys(kept, 1))
    await bury(client, prefix, "j12")
    await assert_counts(1, 0, 0, 0)
    await queue.dead.purge(before=datetime.now(UTC) + timedelta(hours=1))
    assert not await client.exists(keys.dead, keys.dead_queues)


async def test_dead_letters_of_an_earlier_release_are_counted_one_by_one(
    client: Any, queue: JobQueue, keys: QueueKeys, prefix: str
) -> None:
    await add_letters(client, keys, 0, 600)
    await client.delete(keys.dead_queues)
    assert await dead_of(queue) == [150] * 4
    await bury(client, prefix, "new")
    assert await dead_of(queue) == [151, 150, 150, 150]
    # Its clients remove them from the set alone.
    await client.zadd(keys.dead_queues, {f"gone{n}": 1 for n in range(700)})
    assert await dead_of(queue) == [151, 150, 150, 150]
    await bury(client, prefix, "newer")
    assert await client.zcard(keys.dead_queues) == 0
    assert await dead_of(queue) == [152, 150, 150, 150]


async def test_counts_that_cannot_be_kept_hold_up_no_burial(
    client: Any, queue: JobQueue, keys: QueueKeys, prefix: str
) -> None:
    await client.set(keys.dead_queues, "not ours")
    await bury(client, prefix, *(f"j{n}" for n in range(8)), dead_max=5)
    assert await queue.dead.count() == sum(await dead_of(queue)) == 5
