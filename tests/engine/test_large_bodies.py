"""Bodies and results of any size arrive whole, and no script carries the large ones."""

from __future__ import annotations

import os
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from tests.support.engine import QUICK, burst
from tests.support.options import options_of
from tests.support.queues import queue_of, stores_of
from worker import JobQueue
from worker.engine import poll
from worker.errors import Permanent
from worker.queue import staging
from worker.queue.calls import call
from worker.queue.staging import LARGE

pytestmark = pytest.mark.integration

BIG = os.urandom(LARGE + 1)
SMALL = b"small"
SOME = b"s" * (LARGE // 3)  # several of these are much


async def echo(_ctx: dict[str, Any], data: bytes) -> bytes:
    return data


async def sizes(_ctx: dict[str, Any], parts: list[bytes], more: bytes = b"") -> list[int]:
    return [len(more), *map(len, parts)]


async def fail(_ctx: dict[str, Any], data: bytes) -> None:
    raise Permanent(f"no: {len(data)}")


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix, options_of())


async def run(client: Any, prefix: str) -> None:
    await burst(client, prefix, [echo, sizes, fail], options=QUICK)


async def staged_keys(client: Any, prefix: str) -> list[bytes]:
    return [key async for key in client.scan_iter(match=f"{prefix}staged:*", count=1000)]


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "large"])
async def test_arguments_and_results_come_back(
    queue: JobQueue, client: Any, prefix: str, data: bytes
) -> None:
    job = await queue.enqueue("echo", data, then=call("echo"))
    await run(client, prefix)
    assert await job.result(timeout_s=1) == data
    assert await client.pttl(stores_of(queue).keys.result(job.id)) > 0
    assert not await staged_keys(client, prefix)


async def test_many_jobs_are_stored_with_mixed_sizes(
    queue: JobQueue, client: Any, prefix: str
) -> None:
    data = [SMALL, BIG, *[SOME] * 8, SMALL]
    jobs = await queue.enqueue_many([call("echo", each) for each in data])
    for job in jobs:
        assert await client.pttl(stores_of(queue).keys.job(job.id)) == -1
    await run(client, prefix)
    assert [await job.result(timeout_s=1) for job in jobs] == data
    assert not await staged_keys(client, prefix)


async def test_a_large_job_that_exists_is_not_replaced(
    queue: JobQueue, client: Any, prefix: str
) -> None:
    assert (await queue.enqueue("echo", BIG, job_id="a")).is_new
    assert not (await queue.enqueue("echo", BIG + BIG, job_id="a")).is_new
    await queue.enqueue_many([call("echo", BIG + BIG, job_id="a")])
    await run(client, prefix)
    assert await queue.jobs.get("a").result(timeout_s=1) == BIG
    assert not await staged_keys(client, prefix)


@pytest.mark.parametrize(
    ("parts", "more"),
    [([SMALL] * 3, SMALL), ([SMALL, BIG, SMALL], SMALL), ([SOME] * 9, SMALL), ([SMALL] * 2, BIG)],
    ids=["small", "one large", "many", "a large job that follows"],
)
async def test_gathered_results_of_any_size_are_joined(
    queue: JobQueue, client: Any, prefix: str, parts: list[bytes], more: bytes
) -> None:
    then = call("sizes", more=more)
    job = await queue.jobs.gather([call("echo", part) for part in parts], then=then)
    await run(client, prefix)
    assert await job.result(timeout_s=1) == [len(more), *map(len, parts)]
    left = [key async for key in client.scan_iter(match=f"{prefix}*gather*", count=1000)]
    assert not left
    assert not await client.zcard(stores_of(queue).keys.prefix + "queue:schedules")
    assert not await staged_keys(client, prefix)


@pytest.mark.parametrize("data", [SMALL, BIG], ids=["small", "large"])
async def test_a_dead_letter_keeps_its_body(
    queue: JobQueue, client: Any, prefix: str, data: bytes
) -> None:
    await queue.enqueue("fail", data, job_id="a", expires_s=3600)
    await run(client, prefix)
    [letter] = await queue.dead.list()
    assert data in letter.body
    assert await queue.dead.retry("a") == 1
    await run(client, prefix)
    [letter] = await queue.dead.list()
    assert data in letter.body
    assert letter.error.endswith(f"no: {len(data)}")
    assert await queue.dead.purge("a") == 1
    left = [key async for key in client.scan_iter(match=f"{prefix}dead*", count=1000)]
    assert not left
    assert not await staged_keys(client, prefix)


async def test_a_full_server_still_takes_the_end_of_a_job(
    queue: JobQueue, client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'")

    job = await queue.enqueue("echo", BIG)
    monkeypatch.setattr(poll, "stage", refuse)
    await run(client, prefix)
    assert await job.result(timeout_s=1) == BIG


async def test_a_result_that_a_failover_lost_on_its_way_is_sent_again(
    queue: JobQueue, client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = 0

    async def lose_the_first(*args: Any) -> None:
        nonlocal lost
        if lost:
            await staging.stage(*args)
        lost += 1

    job = await queue.enqueue("echo", BIG)
    monkeypatch.setattr(poll, "stage", lose_the_first)
    await run(client, prefix)
    assert await job.result(timeout_s=1) == BIG
    assert lost == 2
    assert not await staged_keys(client, prefix)
