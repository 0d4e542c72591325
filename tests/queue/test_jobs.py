"""Users' jobs in a real worker. Bad input ends one job and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.jobs import FUNCTIONS
from tests.support.queues import open_queue, stores_of
from tests.support.servers import free_port
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import (
    InvalidArgument,
    JobFailed,
    JobQueue,
    JobStatus,
    NotFound,
    NotSerializable,
    PayloadTooLarge,
    Priority,
    QueueUnavailable,
    ResultTimeout,
)

pytestmark = pytest.mark.integration


@pytest.fixture
async def queue(private_valkey_url: str) -> AsyncIterator[JobQueue]:
    """A queue with a worker that knows tests/support/jobs.py."""
    settings = quick_settings(
        private_valkey_url, worker_functions=FUNCTIONS, worker_shutdown_grace_s=0
    )
    async with open_queue(settings) as queue, running_worker(settings):
        yield queue


async def test_arguments_and_results_pass_through(queue: JobQueue) -> None:
    job = await queue.enqueue("add", 1, b=2)
    assert await job.result(timeout_s=10) == 3
    assert await job.status() is JobStatus.COMPLETE
    value = {"bytes": b"\x00", "when": datetime(2026, 1, 1, tzinfo=UTC), "list": [1, None, 1.5]}
    assert await (await queue.enqueue("echo", value)).result(timeout_s=10) == value


@pytest.mark.parametrize("priority", list(Priority))
async def test_jobs_of_every_priority_run(queue: JobQueue, priority: Priority) -> None:
    job = await queue.enqueue("add", 1, 1, priority=priority)
    assert await job.result(timeout_s=10) == 2


async def test_a_job_knows_its_id_try_and_worker(queue: JobQueue) -> None:
    job = await queue.enqueue("context", job_id="my-id")
    found = await job.result(timeout_s=10)
    assert (found["job_id"], found["job_try"]) == ("my-id", 1)
    assert found["worker_id"]


async def test_a_waiting_id_is_not_stored_again(queue: JobQueue) -> None:
    first = await queue.enqueue("echo", 1, job_id="once", delay_s=60)
    second = await queue.enqueue("echo", 2, job_id="once")
    assert (first.is_new, second.is_new) == (True, False)
    assert await second.status() is JobStatus.DEFERRED


async def test_an_id_is_free_again_when_its_job_has_ended(queue: JobQueue) -> None:
    for value in (1, 2):
        job = await queue.enqueue("echo", value, job_id="again")
        assert job.is_new
        assert await job.result(timeout_s=10) == value


async def test_at_and_delay_defer_a_job(queue: JobQueue) -> None:
    soon = await queue.enqueue("echo", 1, at=datetime.now(UTC) + timedelta(milliseconds=200))
    late = await queue.enqueue("echo", 2, delay_s=3600)
    assert await late.status() is JobStatus.DEFERRED
    assert await soon.result(timeout_s=10) == 1
    assert (await queue.stats())["default"]["deferred"] == 1


async def test_a_waiting_and_a_running_job_can_be_aborted(queue: JobQueue) -> None:
    waiting = await queue.enqueue("echo", 1, delay_s=3600)
    assert await waiting.abort()
    running = await queue.enqueue("wait_forever")

    async def runs() -> bool:
        return await running.status() is JobStatus.IN_PROGRESS

    await eventually(runs)
    assert await running.abort()
    assert not await queue.jobs.get("unknown").abort()


async def test_a_body_that_is_no_msgpack_fails_that_job_alone(queue: JobQueue) -> None:
    keys = stores_of(queue).keys
    bodies: dict[str, bytes] = {
        "garbage": b"\xc1\xff\x00",
        "empty-map": b"\x80",
        "cut": b"\x85\xa1t",
        "a-pickle": pickle.dumps({"t": 1, "f": "echo", "a": (1,), "k": {}, "et": 0}),
        "no-function": b"\x81\xa1a\x01",
    }
    for id_, body in bodies.items():
        await stores_of(queue).client.set(keys.job(id_), body)
        await stores_of(queue).client.zadd(keys.queue(), {id_: 1})
    after = await queue.enqueue("add", 2, 2)
    assert await after.result(timeout_s=10) == 4

    async def none_waits() -> bool:
        return not await stores_of(queue).client.zcard(keys.queue())

    await eventually(none_waits)


async def test_a_pickle_runs_no_code(queue: JobQueue, tmp_path: Any) -> None:
    target = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (target.touch, ())

    await stores_of(queue).client.set(
        stores_of(queue).keys.job("evil"), pickle.dumps({"f": Evil(), "et": 0})
    )
    await stores_of(queue).client.zadd(stores_of(queue).keys.queue(), {"evil": 1})
    after = await queue.enqueue("add", 1)
    assert await after.result(timeout_s=10) == 1
    assert not target.exists()


async def test_a_result_without_safe_encoding_fails_only_its_job(queue: JobQueue) -> None:
    with pytest.raises(JobFailed):
        await (await queue.enqueue("unencodable")).result(timeout_s=10)
    assert await (await queue.enqueue("add", 1)).result(timeout_s=10) == 1


async def test_bad_arguments_are_refused_and_nothing_is_stored(private_valkey_url: str) -> None:
    async with open_queue(quick_settings(private_valkey_url, queue_max_job_bytes=1024)) as queue:
        before = await stores_of(queue).client.dbsize()
        wrong: list[tuple[type[Exception], dict[str, Any]]] = [
            (InvalidArgument, {"delay_s": -1}),
            (InvalidArgument, {"delay_s": float("nan")}),
            (InvalidArgument, {"delay_s": 1e12}),
            (InvalidArgument, {"delay_s": "soon"}),
            (InvalidArgument, {"at": datetime(2030, 1, 1)}),  # noqa: DTZ001
            (InvalidArgument, {"at": datetime.now(UTC), "delay_s": 1}),
            (InvalidArgument, {"job_id": "a b"}),
            (InvalidArgument, {"job_id": "x" * 129}),
            (InvalidArgument, {"priority": "highest"}),
        ]
        for error, options in wrong:
            with pytest.raises(error):
                await queue.enqueue("echo", 1, **options)
        with pytest.raises(InvalidArgument, match="job name"):
            await queue.enqueue("")
        with pytest.raises(NotSerializable, match="object"):
            await queue.enqueue("echo", object())
        with pytest.raises(PayloadTooLarge, match="LETTA_QUEUE_MAX_JOB_BYTES"):
            await queue.enqueue("echo", b"x" * 1024)
        assert await stores_of(queue).client.dbsize() == before


async def test_waiting_for_a_missing_result_raises_a_named_error(valkey_url: str) -> None:
    async with open_queue(quick_settings(valkey_url)) as queue:
        with pytest.raises(NotFound):
            await queue.jobs.get("unknown").result(timeout_s=10)
        job = await queue.enqueue("echo", 1, delay_s=3600)
        with pytest.raises(ResultTimeout):
            await job.result(timeout_s=0.05)


async def test_an_unreachable_server_soon_raises_a_named_error() -> None:
    settings = quick_settings(
        f"redis://:hunter2@127.0.0.1:{free_port()}/0", redis_retries=1, redis_connect_timeout_s=0.5
    )
    async with open_queue(settings) as queue:
        with pytest.raises(QueueUnavailable) as caught:
            await queue.enqueue("echo", 1)
        with pytest.raises(QueueUnavailable):
            await queue.send_webhook("https://example.com/", {}, event_type="x")
        with pytest.raises(QueueUnavailable):
            await queue.stats()
    assert "hunter2" not in str(caught.value)
