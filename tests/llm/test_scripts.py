"""Tests each LLM script alone: atomicity, compare-and-set and repeated calls."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from cache.connection.pool import PoolOptions, open_pool
from tests.support.options import options_of
from tests.support.queues import queue_of, stores_of
from tests.support.servers import valkey
from worker import Priority, QueueMemoryFull
from worker.client import JobQueue
from worker.keys import QUEUE_PREFIX
from worker.llm import batch_reads
from worker.llm.answers import Answer
from worker.llm.grouping import Group
from worker.llm.options import FlushRules
from worker.llm.prepared import AGE_FLUSH
from worker.llm.states import BatchState
from worker.queue.encoder import PreparedJob

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"
GROUP = Group("openai", CHAT, "m")
LARGE = 10**9


def body(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix, options_of(llm_batch_max_age_s=3600))


async def hand_in(queue: JobQueue, count: int) -> list[str]:
    bodies = [body(f"q{n}") for n in range(count)]
    return await queue.submit_many(bodies, provider="openai", endpoint=CHAT)


async def seal(
    queue: JobQueue,
    batch_id: str,
    *,
    most: int = LARGE,
    most_bytes: int = LARGE,
    by_age: PreparedJob | None = None,
    max_age_ms: int = 0,
) -> int:
    job = stores_of(queue).prepared.batch(batch_id)
    return await stores_of(queue).batches.seal(
        GROUP,
        batch_id,
        rules=FlushRules(most, most_bytes, 0, max_age_ms),
        full_only=False,
        job=job,
        job_keys=stores_of(queue).keys.job_keys(job.id, Priority.DEFAULT),
        by_age=by_age,
    )


async def members(queue: JobQueue, batch_id: str) -> list[str]:
    return [id_ async for page in stores_of(queue).batches.ids(batch_id) for id_ in page]


@pytest.mark.parametrize("page", [1, 2, 3, 500])
async def test_the_size_of_a_batch_is_that_of_its_unanswered_requests(
    queue: JobQueue, client: Any, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_reads, "PAGE", page)
    ids = await hand_in(queue, 6)
    assert await seal(queue, "b", most=6) == 6
    store, keys = stores_of(queue).batches, stores_of(queue).keys
    pages = [page async for page in store.unanswered("b")]
    assert await store.sizes("b") == (
        6,
        sum(len(request.body) + len(request.id) for page in pages for request in page),
    )
    await stores_of(queue).requests.answer_many([(ids[0], Answer(body=b"{}"))])
    await client.set(keys.llm_request(ids[1]), "of another type")
    await client.hset(keys.llm_request(ids[2]), "batch", "another")
    await client.hset(keys.llm_request(ids[3]), "bytes", 10**12)  # what is stored is what counts
    left = [request for page in [p async for p in store.unanswered("b")] for request in page]
    assert await store.sizes("b") == (3, sum(len(r.body) + len(r.id) for r in left))


async def test_a_flush_by_age_leaves_younger_requests_to_their_own(queue: JobQueue) -> None:
    first, second, third = await hand_in(queue, 3)
    await seal(queue, "b1" * 12, most=1)
    stores = stores_of(queue)
    flush = stores.prepared.flush(AGE_FLUSH + first, GROUP)

    assert await seal(queue, "b2" * 12, by_age=flush, max_age_ms=3_600_000) == 0

    own = AGE_FLUSH + second
    submitted = int(await stores.client.hget(stores.keys.llm_request(second), "by:"))
    due = await stores.client.zscore(stores.keys.queue(), own)
    assert int(due) == submitted + 3_600_000
    assert await stores.client.get(stores.keys.job(own)) == flush.body
    # Its own flush seals it whatever the clock says, so that it cannot wait for ever.
    flush = stores.prepared.flush(own, GROUP)
    assert await seal(queue, "b3" * 12, by_age=flush, max_age_ms=3_600_000) == 2
    assert await members(queue, "b3" * 12) == [second, third]


async def test_a_flush_by_age_seals_the_oldest_in_time(queue: JobQueue) -> None:
    await hand_in(queue, 2)
    flush = stores_of(queue).prepared.flush(AGE_FLUSH + "another", GROUP)
    assert await seal(queue, "b1" * 12, by_age=flush, max_age_ms=0) == 2


async def test_concurrent_seals_neither_lose_nor_double_a_request(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small chunks, so that the sealers alternate within a batch.
    monkeypatch.setattr("worker.llm.batches._SEAL_CHUNK", 7)
    ids = await hand_in(queue, 1000)

    async def sealer() -> list[str]:
        made = []
        while await seal(queue, batch_id := uuid.uuid4().hex[:24], most=90):
            made.append(batch_id)
        return made

    batches = [id_ for made in await asyncio.gather(*(sealer() for _ in range(6))) for id_ in made]
    found = [await members(queue, batch_id) for batch_id in batches]
    assert sorted(id_ for page in found for id_ in page) == sorted(ids)
    assert max(map(len, found)) <= 90
    waiting = await stores_of(queue).batches.waiting(GROUP)
    assert waiting == {"requests": 0, "bytes": 0, "tokens": 0}


async def test_a_sealed_batch_accepts_no_request(queue: JobQueue) -> None:
    await hand_in(queue, 5)
    assert await seal(queue, "b", most=3) == 3
    # A seal that is sent again after a lost reply is the same seal.
    assert await seal(queue, "b", most=100) == 3
    assert len(await members(queue, "b")) == 3
    assert (await stores_of(queue).batches.waiting(GROUP))["requests"] == 2


async def test_a_batch_stays_within_its_byte_limit(queue: JobQueue) -> None:
    await hand_in(queue, 10)
    size = (await stores_of(queue).batches.waiting(GROUP))["bytes"] // 10
    assert await seal(queue, "b", most_bytes=4 * size + 1) == 4
    # A request larger than a batch gets its own batch and blocks no other.
    assert await seal(queue, "c", most_bytes=1) == 1


async def test_a_move_from_another_state_is_refused(queue: JobQueue) -> None:
    await hand_in(queue, 1)
    await seal(queue, "b")
    batch = await stores_of(queue).batches.take("b")
    assert batch is not None
    assert await stores_of(queue).batches.move(batch, BatchState.UPLOADING) == 1
    # The same run with an outdated state.
    assert await stores_of(queue).batches.move(batch, BatchState.SUBMITTING) == 0
    found = await stores_of(queue).batches.read("b")
    assert found is not None
    assert found.state is BatchState.UPLOADING


async def test_the_first_answer_stays_and_counts_once(queue: JobQueue) -> None:
    (id_,) = await hand_in(queue, 1)
    await seal(queue, "b")
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    first, second = Answer(body={"n": 1, "usage": usage}), Answer(body={"n": 2, "usage": usage})
    assert await stores_of(queue).requests.answer(id_, first)
    assert not await stores_of(queue).requests.answer(id_, second)
    assert not await stores_of(queue).requests.answer(id_, Answer(kind="late"))
    assert await queue.llm_result(id_, timeout_s=10) == first.body
    shown = await queue.llm.batches.get("b")
    assert (shown["succeeded"], shown["failed"], shown["usage"]["input"]) == (1, 0, 3)
    assert await stores_of(queue).batches.usage(GROUP) == {"succeeded": 1, "input": 3, "output": 2}


async def test_the_sum_of_a_batch_is_the_sum_of_its_items(queue: JobQueue) -> None:
    ids = await hand_in(queue, 3)
    await seal(queue, "b")
    openai = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    claude = {"input_tokens": 6, "output_tokens": 7, "cache_read_input_tokens": 2}
    answers = [Answer(body={"usage": openai}), Answer(body={"usage": claude}), Answer(kind="x")]
    assert await stores_of(queue).requests.answer_many(list(zip(ids, answers, strict=True))) == 3
    shown = await queue.llm.batches.get("b")
    assert shown["usage"] == {"input": 18, "output": 12, "cached": 6, "reasoning": 3}
    # Half the price, by LETTA_LLM_BATCH_PRICE_FACTOR.
    assert shown["billed_tokens"] == 15
    assert (shown["succeeded"], shown["failed"], shown["outstanding"]) == (2, 1, 0)


async def test_over_the_memory_limit_every_submission_is_refused(
    tmp_path: Path,
) -> None:
    options = PoolOptions()
    with valkey(tmp_path / "small") as port:
        async with open_pool(f"redis://127.0.0.1:{port}", options, name="t") as client:
            queue = queue_of(client, QUEUE_PREFIX, options_of(queue_max_memory_share=0.8))
            used = (await client.info("memory"))["used_memory"]
            await client.config_set("maxmemory", int(used / 0.85))
            to: dict[str, Any] = {"provider": "openai", "endpoint": CHAT}
            for refused in (
                queue.submit_llm_request(body("a"), **to),
                queue.submit_llm_request(body("a"), urgent=True, **to),
                queue.submit_many([body("a"), body("b")], **to),
            ):
                with pytest.raises(QueueMemoryFull, match="LETTA_QUEUE_MAX_MEMORY_SHARE"):
                    await refused
            assert await client.dbsize() == 0


async def test_a_split_moves_only_open_requests(queue: JobQueue) -> None:
    ids = await hand_in(queue, 4)
    await seal(queue, "old")
    old = await stores_of(queue).batches.take("old")
    assert old is not None
    await stores_of(queue).requests.answer(ids[0], Answer(body={}))
    job = stores_of(queue).prepared.batch("new")
    # A split that is sent again after a lost reply is the same split.
    for _ in range(2):
        assert await stores_of(queue).batches.split(old, "new", ids, seal=True, job=job)
        assert await members(queue, "new") == ids[1:]
    shown, part = await queue.llm.batches.get("old"), await queue.llm.batches.get("new")
    assert (shown["moved"], shown["outstanding"]) == (3, 0)
    assert (part["state"], part["outstanding"], part["split_from"]) == ("sealed", 3, "old")
    assert (part["bytes"], part["estimated_tokens"]) > (0, 0)


async def test_a_sealed_split_batch_accepts_no_request(queue: JobQueue) -> None:
    ids = await hand_in(queue, 2)
    await seal(queue, "old")
    old = await stores_of(queue).batches.take("old")
    assert old is not None
    job = stores_of(queue).prepared.batch("new")
    assert await stores_of(queue).batches.split(old, "new", ids[:1], seal=True, job=job)
    assert not await stores_of(queue).batches.split(old, "new", ids[1:], seal=True, job=job)
    assert await members(queue, "new") == ids[:1]
    assert (await queue.llm.batches.get("old"))["outstanding"] == 1


async def test_callbacks_are_kept_as_long_as_the_request(queue: JobQueue) -> None:
    url = "https://example.com/hook"
    (id_,) = await queue.submit_many([body("a")], provider="openai", endpoint=CHAT, webhook_url=url)
    key = stores_of(queue).keys.llm_callback(id_)
    assert await stores_of(queue).client.pttl(key) == -1
    await seal(queue, "b")
    await stores_of(queue).requests.answer(id_, Answer(kind="invalid"))
    assert await stores_of(queue).client.pttl(key) > 0
    job = stores_of(queue).prepared.flush("again", GROUP)
    keys = stores_of(queue).keys.job_keys(job.id, Priority.DEFAULT)
    assert await stores_of(queue).requests.retry([id_], job=job, job_keys=keys) == 1
    assert await stores_of(queue).client.pttl(key) == -1


async def test_an_invalid_request_shifts_no_ids(queue: JobQueue) -> None:
    async def ask(number: int) -> str:
        asked = body(f"q{number}")
        if number % 5 == 0:
            asked["model"] = "m\ud800"
        return await queue.submit_llm_request(asked, provider="openai", endpoint=CHAT)

    ids = await asyncio.gather(*(ask(n) for n in range(20)), return_exceptions=True)
    for number, id_ in enumerate(ids):
        if number % 5 == 0:
            assert isinstance(id_, ValueError)
        else:
            assert isinstance(id_, str)
            stored = await stores_of(queue).requests.read(id_)
            assert stored is not None
            assert f'"q{number}"'.encode() in stored.body
