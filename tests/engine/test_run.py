"""The engine claims, runs, ends, gives back and aborts jobs, also beside stock arq."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus as ArqJobStatus
from arq.worker import Retry, async_check_health, func

from cache.encoding import codec
from tests.support.engine import QUICK, burst, new_worker, running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker.engine import EngineOptions, RetryPolicy, job
from worker.errors import JobFailed, Permanent
from worker.queue.priority import Priority

pytestmark = pytest.mark.integration

FAST_RETRY = RetryPolicy(max_tries=3, base_s=0.01, cap_s=0.02)


async def double(ctx: dict[str, Any], n: int) -> int:
    return 2 * n


async def test_a_job_runs_and_its_result_is_read(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    async with running(client, prefix, [double]) as worker:
        job_ = await queue.enqueue("double", 21)
        assert await job_.result(timeout_s=10) == 42
        await eventually(lambda: _true(worker.jobs_complete == 1))


async def _true(value: bool) -> bool:
    return value


async def test_a_finished_job_leaves_only_its_result(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("double", 1, job_id="a")
    worker = await burst(client, prefix, [double])
    assert worker.jobs_complete == 1
    keys = {key.decode().removeprefix(prefix) for key in await client.keys(f"{prefix}*")}
    keys = {key for key in keys if not key.startswith("history")}
    assert keys - {"queue:wake", "queue:health-check"} == {"result:a"}


async def test_context_names_the_job_and_its_worker(client: Any, prefix: str) -> None:
    seen: dict[str, Any] = {}

    async def look(ctx: dict[str, Any]) -> None:
        seen.update(ctx)

    await queue_of(client, prefix).enqueue("look", job_id="a", priority=Priority.HIGH)
    worker = await burst(client, prefix, [func(look, name="look")], ctx={"own": 1})
    assert seen["job_id"] == "a"
    assert seen["job_try"] == 1
    assert seen["own"] == 1
    assert seen["redis"] is client
    assert seen["priority"] is Priority.HIGH
    assert seen["queue"] == f"{prefix}queue:high"
    assert seen["worker_id"] == worker.worker_id
    assert abs((datetime.now(UTC) - seen["enqueue_time"]).total_seconds()) < 60


async def test_many_jobs_run_once_each(client: Any, prefix: str) -> None:
    runs: list[int] = []

    async def count(ctx: dict[str, Any], n: int) -> None:
        runs.append(n)

    queue = queue_of(client, prefix)
    await asyncio.gather(*(queue.enqueue("count", n) for n in range(300)))
    worker = await burst(client, prefix, [func(count, name="count")], max_jobs=7)
    assert sorted(runs) == list(range(300))
    assert worker.jobs_complete == 300


async def test_never_more_jobs_at_once_than_max_jobs(client: Any, prefix: str) -> None:
    now = most = 0

    async def hold(ctx: dict[str, Any]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    queue = queue_of(client, prefix)
    await asyncio.gather(*(queue.enqueue("hold") for _ in range(50)))
    await burst(client, prefix, [func(hold, name="hold")], max_jobs=4)
    assert most == 4


async def test_priorities_are_taken_in_order(client: Any, prefix: str) -> None:
    order: list[str] = []

    async def note(ctx: dict[str, Any]) -> None:
        order.append(ctx["priority"])

    queue = queue_of(client, prefix)
    for priority in reversed(Priority):
        await queue.enqueue("note", priority=priority)
    options = EngineOptions(reserve=0)
    await burst(client, prefix, [func(note, name="note")], max_jobs=1, options=options)
    assert order == ["critical", "high", "default", "low"]


async def test_a_deferred_job_waits_for_its_time(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    async with running(client, prefix, [double]):
        late = await queue.enqueue("double", 1, delay_s=0.4)
        start = asyncio.get_running_loop().time()
        assert await late.result(timeout_s=10) == 2
        assert asyncio.get_running_loop().time() - start >= 0.3


async def test_retry_defers_and_counts_tries(client: Any, prefix: str) -> None:
    tries: list[int] = []

    async def flaky(ctx: dict[str, Any]) -> str:
        tries.append(ctx["job_try"])
        if ctx["job_try"] < 3:
            raise Retry(defer=0.01)
        return "ok"

    job_ = await queue_of(client, prefix).enqueue("flaky")
    worker = await burst(client, prefix, [func(flaky, name="flaky")])
    assert tries == [1, 2, 3]
    assert worker.jobs_retried == 2
    assert await job_.result(timeout_s=10) == "ok"


async def test_policy_retries_any_exception_then_keeps_a_dead_letter(
    client: Any, prefix: str
) -> None:
    tries: list[int] = []

    async def broken(ctx: dict[str, Any]) -> None:
        tries.append(ctx["job_try"])
        raise ValueError("no")

    job_ = await queue_of(client, prefix).enqueue("broken", job_id="a")
    await burst(client, prefix, [job(broken, name="broken", retry=FAST_RETRY)])
    assert tries == [1, 2, 3]
    with pytest.raises(JobFailed, match="ValueError: no"):
        await job_.result(timeout_s=10)
    dead = await client.hgetall(f"{prefix}dead:a")
    assert (dead[b"reason"], dead[b"tries"]) == (b"exhausted", b"3")
    assert codec.decode(dead[b"body"])["f"] == "broken"


async def test_permanent_errors_are_not_retried(client: Any, prefix: str) -> None:
    runs = 0

    async def forbidden(ctx: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        raise Permanent("never")

    await queue_of(client, prefix).enqueue("forbidden", job_id="a")
    await burst(client, prefix, [job(forbidden, name="forbidden", retry=FAST_RETRY)])
    assert runs == 1
    assert await client.hget(f"{prefix}dead:a", "reason") == b"permanent"


async def test_a_timeout_ends_the_run(client: Any, prefix: str) -> None:
    async def hang(ctx: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    job_ = await queue_of(client, prefix).enqueue("hang")
    await burst(client, prefix, [func(hang, name="hang", timeout=0.05)])
    with pytest.raises(JobFailed, match="TimeoutError"):
        await job_.result(timeout_s=10)


async def test_a_drain_gives_jobs_back_and_charges_no_try(client: Any, prefix: str) -> None:
    started = asyncio.Event()
    tries: list[int] = []

    async def slow(ctx: dict[str, Any]) -> None:
        tries.append(ctx["job_try"])
        started.set()
        await asyncio.Event().wait()

    async def quick(ctx: dict[str, Any]) -> None:
        tries.append(ctx["job_try"])

    await queue_of(client, prefix).enqueue("slow", job_id="a")
    for _ in range(6):
        started.clear()
        async with running(client, prefix, [func(slow, name="slow")]):
            await asyncio.wait_for(started.wait(), 10)
        assert await client.exists(f"{prefix}in-progress:a", f"{prefix}retry:a") == 0
    worker = await burst(client, prefix, [func(quick, name="slow")])
    assert tries == [1] * 7
    assert worker.jobs_complete == 1


async def test_a_forced_drain_cancels_jobs_so_that_they_can_clean_up(
    client: Any, prefix: str
) -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def slow(ctx: dict[str, Any]) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    await queue_of(client, prefix).enqueue("slow", job_id="a")
    async with running(client, prefix, [func(slow, name="slow")]) as worker:
        await asyncio.wait_for(started.wait(), 10)
        worker.force()
        await asyncio.wait_for(cleaned.wait(), 10)
    assert await client.exists(f"{prefix}in-progress:a") == 0


async def test_a_drain_lets_running_jobs_end_within_the_grace(client: Any, prefix: str) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def steady(ctx: dict[str, Any]) -> str:
        started.set()
        await go.wait()
        return "done"

    queue = queue_of(client, prefix)
    job_ = await queue.enqueue("steady")
    await queue.enqueue("steady", job_id="later", delay_s=0.1)
    worker = new_worker(
        client, prefix, [func(steady, name="steady")], job_completion_wait=10, max_jobs=1
    )
    main = asyncio.create_task(worker.main())
    await asyncio.wait_for(started.wait(), 10)
    worker.drain()
    go.set()
    await asyncio.wait_for(main, 10)
    assert await job_.result(timeout_s=10) == "done"
    assert await client.zscore(f"{prefix}queue", "later") is not None


async def test_a_waiting_and_a_running_job_are_aborted(client: Any, prefix: str) -> None:
    started = asyncio.Event()
    runs = 0

    async def hang(ctx: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1
        started.set()
        await asyncio.Event().wait()

    queue = queue_of(client, prefix)
    async with running(client, prefix, [func(hang, name="hang")], max_jobs=2):
        first = await queue.enqueue("hang")
        waiting = await queue.enqueue("hang", delay_s=3600)
        await asyncio.wait_for(started.wait(), 10)
        assert await first.abort()
        assert await waiting.abort()
        for job_ in (first, waiting):
            await eventually(lambda job_=job_: _is_complete(job_))  # type: ignore[misc]
    assert runs == 1
    assert await client.zcard(f"{prefix}abort") == 0


async def _is_complete(job_: Any) -> bool:
    return bool(await job_.status() == "complete")


async def test_max_burst_jobs_stops_there(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for n in range(5):
        await queue.enqueue("double", n)
    worker = await burst(client, prefix, [double], max_burst_jobs=3)
    assert worker.jobs_complete == 3
    assert await client.zcard(f"{prefix}queue") == 2


async def test_hooks_run_in_order_and_the_last_after_the_result(client: Any, prefix: str) -> None:
    calls: list[Any] = []

    async def hook(name: str, ctx: dict[str, Any]) -> None:
        calls.append((name, await client.exists(f"{prefix}result:{ctx['job_id']}")))

    await queue_of(client, prefix).enqueue("double", 1, job_id="a")
    await burst(
        client,
        prefix,
        [double],
        on_job_start=lambda ctx: hook("start", ctx),
        on_job_end=lambda ctx: hook("end", ctx),
        after_job_end=lambda ctx: hook("after", ctx),
    )
    assert calls == [("start", 0), ("end", 0), ("after", 1)]


# -- beside stock arq -----------------------------------------------------------------


async def test_jobs_of_stock_clients_run_and_their_results_are_read(arq: ArqRedis) -> None:
    async with running(arq, "arq:", [double], health_check_interval=1):
        handle = await arq.enqueue_job("double", 4)
        assert handle is not None
        assert await handle.result(timeout=10, poll_delay=0.02) == 8
        assert await handle.status() is ArqJobStatus.complete
        info = await handle.result_info()
        assert info is not None
        assert (info.function, info.job_try, info.success) == ("double", 1, True)
        assert await arq.exists("arq:queue:health-check")


@pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")  # arq's own
async def test_arq_check_sees_the_worker(private_valkey_url: str, arq: ArqRedis) -> None:
    from arq.connections import RedisSettings

    path = arq.connection_pool.connection_kwargs["path"]
    settings = RedisSettings(unix_socket_path=path)
    async with running(arq, "arq:", [double]):
        await eventually(lambda: arq.exists("arq:queue:health-check"))
        assert await async_check_health(settings) == 0
    assert await async_check_health(settings) == 1


async def test_a_stock_abort_ends_running_and_deferred_jobs(arq: ArqRedis) -> None:
    started = asyncio.Event()

    async def hang(ctx: dict[str, Any]) -> None:
        started.set()
        await asyncio.Event().wait()

    async with running(arq, "arq:", [func(hang, name="hang")]):
        live = await arq.enqueue_job("hang")
        later = await arq.enqueue_job("hang", _defer_by=3600)
        assert live is not None
        assert later is not None
        await asyncio.wait_for(started.wait(), 10)
        assert await live.status() is ArqJobStatus.in_progress
        for handle in (live, later):
            assert await handle.abort(timeout=10, poll_delay=0.02) is True


async def test_jobs_that_a_stock_worker_holds_are_not_claimed(arq: ArqRedis) -> None:
    handle = await arq.enqueue_job("double", 1, _job_id="held")
    assert handle is not None
    await arq.psetex("arq:in-progress:held", 60_000, b"1")
    async with running(arq, "arq:", [double], options=QUICK) as worker:
        other = await arq.enqueue_job("double", 2)
        assert other is not None
        assert await other.result(timeout=10, poll_delay=0.02) == 4

        async def counted() -> bool:
            return worker.jobs_complete == 1

        # The result is readable before the worker receives the reply.
        await eventually(counted)
        await arq.delete("arq:in-progress:held")
        assert (
            await ArqJob("held", arq, _deserializer=codec.decode).result(
                timeout=10, poll_delay=0.02
            )
            == 2
        )
