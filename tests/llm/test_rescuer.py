"""Tests that open requests and batches get a new job when theirs was lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.llm import body, outcome, outcomes, settings_for, submit
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue, RequestFailed
from worker.app.composition import build_llm_context
from worker.llm.rescuer import rescue_orphans

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def one_fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def fake(one_fake: FakeProvider) -> FakeProvider:
    one_fake.reset()
    return one_fake


async def urgent(queue: JobQueue, text: str) -> str:
    return await queue.submit_llm_request(
        body("openai", text), provider="openai", endpoint="chat/completions", urgent=True
    )


async def lose(queue: JobQueue, job_id: str, *, reason: str | None = None) -> None:
    """Remove a job, as a dead letter with `reason` or as a purge."""
    raw = await stores_of(queue).client.get(stores_of(queue).keys.job(job_id))
    assert raw is not None
    await stores_of(queue).client.delete(stores_of(queue).keys.job(job_id))
    for queued in stores_of(queue).jobs.queues:
        await stores_of(queue).client.zrem(queued, job_id)
    if reason is not None:
        letter = {"body": raw, "reason": reason, "error": "", "queue": 2, "tries": 1, "died": 1}
        letter["name"] = "run_llm_request"
        await stores_of(queue).client.hset(stores_of(queue).keys.dead_job(job_id), mapping=letter)
        await stores_of(queue).client.zadd(stores_of(queue).keys.dead, {job_id: 1})


@pytest.mark.parametrize("reason", [None, "poison", "undecodable"])
async def test_a_request_without_its_job_gets_a_new_one_and_is_answered(
    private_valkey_url: str, fake: FakeProvider, reason: str | None
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        id_ = await urgent(queue, "hello")
        await lose(queue, f"llm:single:{id_}", reason=reason)
        context = build_llm_context(settings, stores_of(queue))
        # A check at once finds nothing idle; a later one does.
        assert await rescue_orphans(context, idle_s=60) == 0
        assert await rescue_orphans(context) == 1
        assert await rescue_orphans(context) == 0
        assert await queue.dead.count() == 0
        async with running_worker(settings):
            assert await outcome(queue, id_) == "echo: hello"
        assert await stores_of(queue).client.zcard(stores_of(queue).keys.llm_single) == 0


async def test_a_request_whose_job_is_lost_too_often_ends_with_an_error(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        id_ = await urgent(queue, "deadly")
        context = build_llm_context(settings, stores_of(queue))
        for _ in range(3):
            await lose(queue, f"llm:single:{id_}", reason="poison")
            assert await rescue_orphans(context) == 1
        await lose(queue, f"llm:single:{id_}", reason="poison")
        assert await rescue_orphans(context) == 0
        with pytest.raises(RequestFailed, match="poison") as caught:
            await queue.llm_result(id_, timeout_s=10)
        assert caught.value.kind == "job_lost"
        # The dead letter stays for the operator.
        assert await queue.dead.count() == 1
        assert await stores_of(queue).client.zcard(stores_of(queue).keys.llm_single) == 0


async def test_a_batch_without_its_job_always_gets_a_new_one(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(polls=1_000_000)
    settings = settings_for(private_valkey_url, fake, llm_poll_interval_s=3600)
    async with open_queue(settings) as queue:
        ids = await submit(queue, "openai", "a", "b")
        async with running_worker(settings):
            await eventually(lambda: submitted(queue))
        (shown,) = await queue.llm.batches.list()
        context = build_llm_context(settings, stores_of(queue))
        for _ in range(5):
            await lose(queue, f"llm:batch:{shown['id']}", reason="poison")
            assert await rescue_orphans(context) == 1
        fake.set(polls=0)
        async with running_worker(settings):
            assert await outcomes(queue, ids) == ["echo: a", "echo: b"]
            await eventually(lambda: nothing_under_way(queue))


async def submitted(queue: JobQueue) -> bool:
    return any(row["state"] == "submitted" for row in await queue.llm.batches.list())


async def nothing_under_way(queue: JobQueue) -> bool:
    return not await stores_of(queue).client.exists(
        stores_of(queue).keys.llm_underway, stores_of(queue).keys.llm_single
    )


async def test_workers_run_the_rescuer_by_cron(
    private_valkey_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.llm.rescuer._IDLE_S", 0.0)
    monkeypatch.setattr("worker.app.functions.RESCUE_LLM_CRON", "* * * * * *")
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        id_ = await urgent(queue, "hello")
        await lose(queue, f"llm:single:{id_}")
        async with running_worker(settings):
            assert await outcome(queue, id_) == "echo: hello"
