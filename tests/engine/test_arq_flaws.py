"""Each of the fifteen ways in which stock arq loses, delays or doubles work is fixed."""

from __future__ import annotations

import asyncio
import pickle
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.cron import cron
from arq.worker import Retry, func
from redis.exceptions import ConnectionError as RedisConnectionError

from cache.connection.pool import PoolOptions, open_pool
from cache.connection.scripts import load
from cache.encoding import codec
from tests.support.engine import QUICK, burst, new_worker, running
from tests.support.fault_proxy import fault_proxy
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker.engine import EngineOptions, RetryPolicy, Worker, job
from worker.engine.cron import CronRunner
from worker.errors import JobFailed
from worker.keys import EngineKeys, QueueKeys

pytestmark = pytest.mark.faults

FAST = RetryPolicy(max_tries=3, base_s=0.001)


async def double(ctx: dict[str, Any], n: int = 1) -> int:
    return 2 * n


async def test_01_locked_jobs_at_the_head_do_not_hide_those_behind(
    client: Any, prefix: str
) -> None:
    queue = queue_of(client, prefix)
    for n in range(150):
        await queue.enqueue("double", job_id=f"locked{n}")
        await client.psetex(f"{prefix}in-progress:locked{n}", 60_000, b"1")
    last = await queue.enqueue("double", 4)
    async with running(client, prefix, [double], max_jobs=1):
        assert await last.result(timeout_s=10) == 8


async def test_02_a_lease_is_short_whatever_the_timeout(client: Any, prefix: str) -> None:
    started = asyncio.Event()

    async def long(ctx: dict[str, Any]) -> None:
        started.set()
        await asyncio.Event().wait()

    await queue_of(client, prefix).enqueue("long", job_id="a")
    options = EngineOptions(lease_s=3)
    async with running(client, prefix, [func(long, name="long", timeout=36_000)], options=options):
        await asyncio.wait_for(started.wait(), 10)
        lease_ends = await client.zscore(f"{prefix}queue:running", "a")
        assert lease_ends - time.time() * 1000 < 4000


async def test_03_a_claim_that_was_taken_over_cannot_end_the_job(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    started, go = asyncio.Event(), asyncio.Event()

    async def hold(ctx: dict[str, Any]) -> str:
        started.set()
        await go.wait()
        return "stale"

    await queue.enqueue("hold", job_id="a")
    # The lease is too long to be renewed here, so that only fencing protects the job.
    options = EngineOptions(lease_s=60, poll_s=0.1)
    async with running(client, prefix, [func(hold, name="hold")], options=options) as worker:
        await asyncio.wait_for(started.wait(), 10)
        other = b"another:1|3|1|1"
        await client.set(f"{prefix}in-progress:a", other)
        go.set()
        await eventually(lambda: _ended(worker))
        assert await client.get(f"{prefix}in-progress:a") == other
        assert await client.exists(f"{prefix}job:a") == 1
        assert await client.exists(f"{prefix}result:a") == 0
        assert worker.jobs_complete == 0


async def test_03_a_job_whose_claim_another_took_is_canceled(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    started, canceled = asyncio.Event(), asyncio.Event()

    async def hold(ctx: dict[str, Any]) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            canceled.set()

    await queue.enqueue("hold", job_id="a")
    async with running(client, prefix, [func(hold, name="hold")], options=QUICK) as worker:
        await asyncio.wait_for(started.wait(), 10)
        await client.set(f"{prefix}in-progress:a", b"another:1|3|1|1")
        await asyncio.wait_for(canceled.wait(), 10)
        await eventually(lambda: _ended(worker))
        assert await client.exists(f"{prefix}job:a") == 1


async def _ended(worker: Worker) -> bool:
    # One more poll after the end has left the outbox.
    return not worker.claims and not worker.has_unsent_ends


async def test_04_bodies_have_no_silent_expiry(arq: ArqRedis) -> None:
    await queue_of(arq, "arq:").enqueue("double", job_id="ours")
    assert await arq.pttl("arq:job:ours") == -1
    await arq.enqueue_job("again", _job_id="theirs")

    async def again(ctx: dict[str, Any]) -> None:
        raise Retry(defer=3600)

    async with running(arq, "arq:", [func(again, name="again")]):
        await eventually(lambda: arq.exists("arq:retry:theirs"))
        assert await arq.pttl("arq:job:theirs") == -1


async def test_05_exceptions_and_timeouts_are_retried(client: Any, prefix: str) -> None:
    tries: list[int] = []

    async def flaky(ctx: dict[str, Any]) -> str:
        tries.append(ctx["job_try"])
        if ctx["job_try"] == 1:
            raise ValueError("once")
        if ctx["job_try"] == 2:
            await asyncio.Event().wait()
        return "ok"

    job_ = await queue_of(client, prefix).enqueue("flaky")
    await burst(client, prefix, [job(flaky, name="flaky", retry=FAST, timeout=0.05)])
    assert tries == [1, 2, 3]
    assert await job_.result(timeout_s=10) == "ok"


async def test_06_five_deploys_charge_no_try(client: Any, prefix: str) -> None:
    tries: list[int] = []
    started = asyncio.Event()

    async def hang(ctx: dict[str, Any]) -> None:
        tries.append(ctx["job_try"])
        started.set()
        await asyncio.Event().wait()

    await queue_of(client, prefix).enqueue("hang", job_id="a")
    for _ in range(5):
        started.clear()
        async with running(client, prefix, [func(hang, name="hang", max_tries=1)]):
            await asyncio.wait_for(started.wait(), 10)
    assert tries == [1] * 5
    assert await client.zscore(f"{prefix}queue", "a") <= time.time() * 1000


async def test_07_unknown_functions_wait_and_unreadable_bodies_are_kept(
    client: Any, prefix: str
) -> None:
    queue = queue_of(client, prefix)
    new = await queue.enqueue("double", 2)
    await client.set(f"{prefix}job:bad", b"\xc1raw")
    await client.zadd(f"{prefix}queue", {"bad": 1})

    async def other(ctx: dict[str, Any]) -> None:
        pass

    async with running(client, prefix, [func(other, name="other")]):
        await eventually(lambda: client.hexists(f"{prefix}parked", new.id))
        # A worker of the new release joins and claims it.
        async with running(client, prefix, [double]):
            assert await new.result(timeout_s=20) == 4
    letters = await queue.dead.list()
    assert [(x.id, x.reason, x.body) for x in letters] == [("bad", "undecodable", b"\xc1raw")]
    assert not await client.exists(f"{prefix}parked")


async def test_07_a_job_that_stays_unknown_is_a_dead_letter(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    lost = await queue.enqueue("nobody_knows")
    options = EngineOptions(park_s=0.6, poll_s=0.1)
    async with running(client, prefix, [double], options=options):
        with pytest.raises(JobFailed, match="not found"):
            await lost.result(timeout_s=10)
    letter = await queue.dead.get(lost.id)
    assert letter is not None
    assert letter.reason == "unknown"


@pytest.mark.parametrize("hook", ["on_job_start", "on_job_end", "after_job_end"])
async def test_08_an_exception_in_a_hook_does_not_end_the_worker(
    client: Any, prefix: str, hook: str
) -> None:
    async def broken(ctx: dict[str, Any]) -> None:
        raise RuntimeError("hook")

    queue = queue_of(client, prefix)
    for _ in range(3):
        await queue.enqueue("double")
    worker = await burst(client, prefix, [double], **{hook: broken})
    assert worker.jobs_done == 3
    assert worker.jobs_failed == (3 if hook == "on_job_start" else 0)


async def test_08_a_failed_result_kept_forever_is_stored(client: Any, prefix: str) -> None:
    async def fail(ctx: dict[str, Any]) -> None:
        raise ValueError("no")

    job_ = await queue_of(client, prefix).enqueue("fail")
    await burst(client, prefix, [func(fail, name="fail")], keep_result_forever=True)
    with pytest.raises(JobFailed, match="no"):
        await job_.result(timeout_s=10)
    assert await client.pttl(f"{prefix}result:{job_.id}") == -1


async def test_09_a_mark_of_an_earlier_abort_does_not_end_a_later_job(
    client: Any, prefix: str
) -> None:
    await client.zadd(f"{prefix}abort", {"a": time.time() * 1000 - 120_000, "gone": 1})
    job_ = await queue_of(client, prefix).enqueue("double", 3, job_id="a")
    worker = await burst(client, prefix, [double])
    assert worker.jobs_complete == 1
    assert await job_.result(timeout_s=10) == 6
    async with running(client, prefix, [double]):
        await eventually(lambda: _is_gone(client, f"{prefix}abort"))


async def _is_gone(client: Any, key: str) -> bool:
    return not await client.exists(key)


async def test_09_abort_marks_without_a_job_are_removed(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    waiting = await queue.enqueue("double", delay_s=3600)
    old = (time.time() - 120) * 1000
    await client.zadd(f"{prefix}abort", {"gone": old, waiting.id: old})
    async with running(client, prefix, [double], options=QUICK):
        await eventually(lambda: _is_no_member(client, f"{prefix}abort", "gone"))
        assert await client.zscore(f"{prefix}abort", waiting.id) == old


async def _is_no_member(client: Any, key: str, member: str) -> bool:
    return await client.zscore(key, member) is None


async def test_10_a_kept_result_does_not_block_its_id(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for n in (1, 2):
        job_ = await queue.enqueue("double", n, job_id="a")
        await burst(client, prefix, [double])
        assert await job_.result(timeout_s=10) == 2 * n


async def test_11_an_error_survives_a_result_that_cannot_be_stored(
    client: Any, prefix: str
) -> None:
    async def odd(ctx: dict[str, Any]) -> object:
        return object()

    async def fail(ctx: dict[str, Any]) -> None:
        raise ValueError("the reason")

    queue = queue_of(client, prefix)
    unstored = await queue.enqueue("odd")
    unkept = await queue.enqueue("fail")
    await burst(client, prefix, [func(odd, name="odd"), func(fail, name="fail", keep_result=0)])
    with pytest.raises(JobFailed, match="object"):
        await unstored.result(timeout_s=10)
    letter = await queue.dead.get(unkept.id)
    assert letter is not None
    assert letter.error == "ValueError: the reason"


async def test_12_score_0_runs_and_a_long_deferral_keeps_the_tries(
    client: Any, prefix: str
) -> None:
    async def later(ctx: dict[str, Any]) -> None:
        raise Retry(defer=timedelta(days=30))

    queue = queue_of(client, prefix)
    zero = await queue.enqueue("double")
    await client.zadd(f"{prefix}queue", {zero.id: 0})
    far = await queue.enqueue("later")
    async with running(client, prefix, [double, func(later, name="later")]):
        assert await zero.result(timeout_s=10) == 2
        await eventually(lambda: client.get(f"{prefix}retry:{far.id}"))
    assert await client.get(f"{prefix}retry:{far.id}") == b"1"
    assert await client.pttl(f"{prefix}retry:{far.id}") == -1


@pytest.mark.parametrize("missed", ["once", "skip"])
async def test_13_a_missed_tick_runs_once_or_is_skipped(
    client: Any, prefix: str, missed: str
) -> None:
    ran: list[str] = []

    async def nightly(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job_id"])

    hour = (datetime.now(UTC).hour + 12) % 24
    # The last tick was three days ago: three ticks were missed.
    await client.hset(f"{prefix}queue:cron", "cron:n", int((time.time() - 3 * 86_400) * 1000))

    def crons() -> list[Any]:
        return [cron(nightly, name="cron:n", hour=hour, minute=0)]

    options = EngineOptions(cron_missed=missed)
    workers = [
        burst(client, prefix, [double], cron_jobs=crons(), options=options, timezone=UTC)
        for _ in range(3)
    ]
    await asyncio.gather(*workers)
    assert len(ran) == (1 if missed == "once" else 0)


async def test_13_ticks_that_a_dying_worker_caught_up_run_once(
    client: Any, prefix: str, valkey_url: str
) -> None:
    async def nightly(ctx: dict[str, Any]) -> None: ...

    now = int(time.time() * 1000)
    keys = EngineKeys(QueueKeys(prefix))
    await client.hset(keys.cron, "cron:n", now - 3 * 86_400_000)
    await client.script_load(load("worker.engine", "cron", "worker.queue").source)

    def runner(through: Any) -> CronRunner:
        return CronRunner(
            through,
            keys,
            [cron(nightly, name="cron:n", hour=set(range(24)), minute=0)],
            encode=codec.encode,
            missed="once",
            now_ms=lambda: now,
            timezone=UTC,
        )

    async with (
        fault_proxy(valkey_url.removeprefix("unix://")) as proxy,
        open_pool(proxy.url, PoolOptions(retries=0), name="dying") as dying,
    ):
        proxy.cut_replies(1)
        with pytest.raises(RedisConnectionError):
            await runner(dying).tick()
    await runner(client).tick()
    assert await client.zcard(keys.default_queue) == 1


async def test_13_a_tick_whose_job_is_forgotten_does_not_run_again(
    client: Any, prefix: str
) -> None:
    async def hourly(ctx: dict[str, Any]) -> None: ...

    keys = EngineKeys(QueueKeys(prefix))
    hour_ms = 3_600_000
    now = int(time.time() * 1000)

    def runner() -> CronRunner:
        crons = [cron(hourly, name="cron:h", hour=set(range(24)), minute=0)]
        return CronRunner(
            client,
            keys,
            crons,
            encode=codec.encode,
            missed="once",
            now_ms=lambda: now,
            timezone=UTC,
        )

    # Both are up at the tick; the second ticks after the job ended and its keys expired.
    first, second = runner(), runner()
    await first.tick()
    await second.tick()
    now += hour_ms
    await first.tick()
    assert await client.zcard(keys.default_queue) == 1
    await burst(client, prefix, [func(hourly, name="cron:h")], keep_result=0)
    assert await client.zcard(keys.default_queue) == 0
    await second.tick()
    assert await client.zcard(keys.default_queue) == 0


async def test_two_schedules_of_one_function_both_run(client: Any, prefix: str) -> None:
    async def hourly(ctx: dict[str, Any]) -> None: ...

    keys = EngineKeys(QueueKeys(prefix))
    now = 1_800_000_000_000  # 08:00

    def at(minute: int, job_id: str | None = None) -> Any:
        return cron(hourly, name="cron:h", minute=minute, microsecond=0, job_id=job_id)

    crons = CronRunner(
        client,
        keys,
        [at(10), at(20), at(30, "a"), at(30, "b")],
        encode=codec.encode,
        missed="once",
        now_ms=lambda: now,
        timezone=UTC,
    )
    queued = []
    for _ in range(4):
        await crons.tick()
        queued.append(await client.zcard(keys.default_queue))
        now += 600_000
    assert queued == [0, 1, 2, 4]


async def test_13_several_workers_run_each_tick_once(client: Any, prefix: str) -> None:
    ran: list[str] = []

    async def tick(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job_id"])

    def crons() -> list[Any]:
        return [cron(tick, name="cron:t", second=set(range(60)), microsecond=0)]

    async with (
        running(client, prefix, [], cron_jobs=crons()),
        running(client, prefix, [], cron_jobs=crons()),
        running(client, prefix, [], cron_jobs=crons()),
    ):
        await eventually(lambda: _has(ran, 3), deadline_s=60)
    # A busy machine may miss ticks, and of those only the last one runs.
    assert len(set(ran)) == len(ran)
    assert all(int(id_.rsplit(":", 1)[1]) % 1000 == 0 for id_ in ran)


async def _has(found: list[str], count: int) -> bool:
    return len(found) >= count


async def test_14_a_workers_own_clock_is_ignored_from_the_start(
    client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hourly(ctx: dict[str, Any]) -> None: ...

    ahead_ms = 3_600_000
    monkeypatch.setattr("worker.engine.state.timestamp_ms", lambda: time.time() * 1000 + ahead_ms)
    crons = [cron(hourly, name="cron:h", hour=set(range(24)), minute=0)]
    keys = EngineKeys(QueueKeys(prefix))
    async with running(client, prefix, [], cron_jobs=crons):
        last = await eventually(lambda: client.hget(keys.cron, "cron:h"))
    assert abs(int(last) - time.time() * 1000) < ahead_ms / 2


async def test_14_a_deferred_job_that_stock_arq_aborts_never_runs(arq: ArqRedis) -> None:
    runs = 0

    async def count(ctx: dict[str, Any]) -> None:
        nonlocal runs
        runs += 1

    handle = await arq.enqueue_job("count", _job_id="a", _defer_by=3600)
    assert handle is not None
    # What Job.abort writes first; the abort mark comes a round trip later.
    await arq.zadd("arq:queue", {"a": 1})
    async with running(arq, "arq:", [func(count, name="count")]):
        await eventually(lambda: arq.exists("arq:result:a"))
    assert runs == 0


async def test_15_no_pickle_is_loaded_and_each_worker_has_its_own_health(
    client: Any, prefix: str
) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("the pickle was loaded",))

    body = pickle.dumps({"t": None, "f": "double", "a": (Bomb(),), "k": {}, "et": 1})
    await client.set(f"{prefix}job:a", body)
    await client.zadd(f"{prefix}queue", {"a": 1})
    async with (
        running(client, prefix, [double], options=QUICK) as first,
        running(client, prefix, [double], options=QUICK) as second,
    ):
        queue = queue_of(client, prefix)
        await eventually(lambda: queue.dead.get("a"))
        for worker in (first, second):
            await eventually(lambda w=worker: client.exists(f"{prefix}worker:{w.worker_id}"))  # type: ignore[misc]
        letter = await queue.dead.get("a")
        assert letter is not None
        assert (letter.reason, letter.body) == ("undecodable", body)
    assert new_worker(client, prefix, [double]).worker_id != first.worker_id
