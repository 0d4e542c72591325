"""No script holds the queue's server for long at the largest sizes: large bytes never pass through one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from arq.worker import func

from cache.connection.pool import PoolOptions, open_pool
from tests.support.bounded_steps import Act, assert_short_steps
from tests.support.engine import QUICK, burst
from tests.support.options import endpoint_limits, options_of
from tests.support.queues import queue_of, stores_of
from worker import JobQueue
from worker.errors import PayloadTooLarge, Permanent
from worker.llm.answers import Answer
from worker.queue.calls import call
from worker.webhooks.records import ClaimedDelivery

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
# What the settings allow at most, less what is around it.
JOB, REQUEST, WEBHOOK = 64 * MIB - 4096, 16 * MIB - 4096, 16 * MIB - 4096
# Just below the size that travels apart; and as many as one call takes.
SOME, MANY = 256 * 1024 - 4096, 64
CHAT = "/v1/chat/completions"
URL = "https://hooks.example.com/a"


async def echo(_ctx: dict[str, Any], data: bytes) -> bytes:
    return data


async def make(_ctx: dict[str, Any], size: int) -> bytes:
    return bytes(size)


async def count(_ctx: dict[str, Any], parts: list[bytes], _more: bytes = b"") -> int:
    return sum(map(len, parts))


async def fail(_ctx: dict[str, Any], _data: bytes) -> None:
    raise Permanent("no")


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    sizes = {"queue_max_job_bytes": 64 * MIB, "webhook_max_body_bytes": 16 * MIB}
    more = {"llm_max_body_bytes": 16 * MIB, "llm_batch_max_age_s": 3600}
    return queue_of(client, prefix, options_of(**sizes, **more))


async def assert_short(queue: JobQueue, act: Act, prepare: Act | None = None) -> None:
    stores = stores_of(queue)
    await assert_short_steps(stores.client, stores.keys.prefix, act, prepare)


async def run(queue: JobQueue, functions: Sequence[Any]) -> None:
    stores = stores_of(queue)
    await burst(
        stores.client, stores.keys.prefix, functions, options=QUICK, max_jobs=MANY, keep_result=60
    )


async def test_a_job_and_its_result_of_64_mib(queue: JobQueue) -> None:
    async def act() -> None:
        job = await queue.enqueue("echo", bytes(JOB))
        await run(queue, [echo])
        assert len(await job.result(timeout_s=5)) == JOB

    await assert_short(queue, act)


async def test_a_result_of_32_mib_on_a_full_server(private_valkey_url: str) -> None:
    """It has no memory for a plain SET, but must end jobs: the result goes there in pieces."""
    async with open_pool(private_valkey_url, PoolOptions(), name="t") as client:
        queue = queue_of(client, "t:")

        async def make_when_full(_ctx: dict[Any, Any]) -> bytes:
            await client.config_set("maxmemory", 1)
            return bytes(32 * MIB)

        async def act() -> None:
            job = await queue.enqueue("make_when_full")
            try:
                await run(queue, [func(cast(Any, make_when_full), name="make_when_full")])
            finally:
                await client.config_set("maxmemory", 0)
            assert len(await job.result(timeout_s=30)) == 32 * MIB

        await assert_short(queue, act)


async def test_many_jobs_and_results_that_are_large_together(queue: JobQueue) -> None:
    async def act() -> None:
        jobs = await queue.enqueue_many([call("echo", bytes(SOME)) for _ in range(MANY)])
        await run(queue, [echo])
        assert len(await jobs[-1].result(timeout_s=5)) == SOME

    await assert_short(queue, act)


async def test_a_large_job_dies_and_is_retried(queue: JobQueue) -> None:
    async def act() -> None:
        await queue.enqueue("fail", bytes(16 * MIB), job_id="a", expires_s=3600)
        await run(queue, [fail])
        assert await queue.dead.retry("a") == 1
        await run(queue, [fail])
        assert await queue.dead.purge("a") == 1

    await assert_short(queue, act)


@pytest.mark.parametrize(("parts", "size"), [(2, 8 * MIB), (50, SOME)], ids=["large", "many"])
async def test_gathered_results_that_are_large_together(
    queue: JobQueue, parts: int, size: int
) -> None:
    async def act() -> None:
        calls = [call("make", size) for _ in range(parts)]
        job = await queue.jobs.gather(calls, then=call("count"))
        await run(queue, [make, count])
        assert await job.result(timeout_s=5) == parts * size

    await assert_short(queue, act)


async def test_a_large_job_that_follows_a_gathering(queue: JobQueue) -> None:
    async def act() -> None:
        calls = [call("make", 1) for _ in range(30)]
        await queue.jobs.gather(calls, then=call("count", bytes(32 * MIB)))
        await run(queue, [make, count])

    await assert_short(queue, act)


@pytest.mark.parametrize(("size", "times"), [(WEBHOOK, 1), (SOME, 64)], ids=["one", "many"])
async def test_webhooks_with_large_bodies(queue: JobQueue, size: int, times: int) -> None:
    attempts, limits = stores_of(queue).attempts, endpoint_limits(concurrency=1000)

    async def begin(id_: str) -> None:
        found = await attempts.begin(id_, datetime.now(UTC), limits, max_attempts=9)
        assert isinstance(found, ClaimedDelivery), found
        assert len(found.body) == size + 2

    async def act() -> None:
        body = "x" * size
        ids = [await queue.send_webhook(URL, body, event_type="x") for _ in range(times)]
        await asyncio.gather(*map(begin, ids))

    await assert_short(queue, act)


@pytest.mark.parametrize("urgent", [False, True], ids=["batched", "urgent"])
async def test_an_llm_request_of_16_mib_and_its_answer_of_60_mib(
    queue: JobQueue, urgent: bool
) -> None:
    requests = stores_of(queue).requests

    async def act() -> None:
        body = {"model": "m", "messages": ["x" * REQUEST]}
        id_ = await queue.submit_llm_request(
            body, provider="openai", endpoint=CHAT, urgent=urgent, dedupe=False
        )
        stored = await requests.read(id_)
        assert stored is not None
        assert len(stored.body) > REQUEST
        answer = Answer(body={"text": "y" * 60 * MIB})
        assert await requests.answer(id_, answer)
        found = await requests.peek_answer(id_)
        assert found == answer

    await assert_short(queue, act)


async def test_a_repeating_job_over_1_mib_is_refused(queue: JobQueue) -> None:
    await queue.jobs.schedule("a", call("echo", bytes(MIB - 100)), every_s=60)
    with pytest.raises(PayloadTooLarge, match="schedule 'a' is"):
        await queue.jobs.schedule("a", call("echo", bytes(MIB)), every_s=60)


async def test_many_llm_requests_that_are_large_together(queue: JobQueue) -> None:
    async def act() -> None:
        bodies = [{"model": "m", "messages": ["x" * 20_000, n]} for n in range(200)]
        ids = await queue.submit_many(bodies, provider="openai", endpoint=CHAT, dedupe=False)
        assert len(ids) == 200

    await assert_short(queue, act)
