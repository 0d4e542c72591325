"""Open batches that do not move are found, by state, also beside bytes of others."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.queues import queue_of, stores_of
from worker.llm.grouping import Group
from worker.llm.options import FlushRules
from worker.llm.states import BatchState
from worker.queue.encoder import PreparedJob

pytestmark = pytest.mark.integration

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
GROUP = Group("openai", "/v1/chat/completions", "m")
HOUR_MS = 3_600_000


async def test_the_slowest_batch_of_each_state_is_measured(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    keys = stores_of(queue).keys
    now_ms = int(time.time() * 1000)
    rows: dict[str, dict[str, Any]] = {
        "slow": {"state": "submitted", "created": 1, "progressed": now_ms - 5 * HOUR_MS},
        "quick": {"state": "submitted", "created": 1, "progressed": now_ms, "error": "denied"},
        "old": {"state": "sealed", "created": now_ms - HOUR_MS},
        "odd": {"state": "none-of-ours", "progressed": "x"},
    }
    for id_, row in rows.items():
        await client.hset(keys.llm_batch(id_), mapping=row)
    await client.set(keys.llm_batch("foreign"), "text")
    await client.zadd(keys.llm_underway, dict.fromkeys([*rows, "foreign", "gone", b"\xff"], 1))

    found = {each.state: each for each in await queue.llm.batches.progress()}

    assert set(found) == {state for state in BatchState if not state.is_end}
    submitted, sealed = found[BatchState.SUBMITTED], found[BatchState.SEALED]
    assert (submitted.batches, submitted.failing) == (2, 1)
    assert submitted.idle_s == pytest.approx(5 * 3600, abs=300)
    assert sealed.batches == 1
    assert sealed.idle_s == pytest.approx(3600, abs=300)
    assert found[BatchState.OPEN].idle_s == 0


async def test_at_most_a_thousand_batches_are_looked_at(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    keys = stores_of(queue).keys
    async with client.pipeline(transaction=False) as pipe:
        for n in range(1100):
            pipe.hset(keys.llm_batch(f"b{n}"), "state", "submitted")
            pipe.zadd(keys.llm_underway, {f"b{n}": n})
        await pipe.execute()

    assert sum(each.batches for each in await queue.llm.batches.progress()) == 1000


async def test_each_transition_is_progress(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    store, keys = stores_of(queue).batches, stores_of(queue).keys
    await queue.submit_llm_request(BODY, provider=GROUP.provider, endpoint=GROUP.endpoint)
    rules = FlushRules(max_requests=1, max_bytes=1_000_000, max_tokens=0, max_age_ms=60_000)
    job = PreparedJob("j", b"x")
    assert await store.seal(
        GROUP, "b", rules=rules, full_only=False, job=job, job_keys=keys.job_keys("j")
    )
    await client.hset(keys.llm_batch("b"), "created", 1)
    batch = await store.take("b")
    assert batch is not None
    assert await store.move(batch, BatchState.UPLOADING) == 1

    found = {each.state: each for each in await queue.llm.batches.progress()}

    assert found[BatchState.UPLOADING].batches == 1
    assert found[BatchState.UPLOADING].idle_s < 600
