"""The server is away, hung, killed, full or unsafe, or its reply is lost after it executed a call."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.worker import func
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cache.connection.pool import PoolOptions, open_pool
from cache.errors import RedisRefused
from tests.support.engine import QUICK, burst, new_worker, running
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.queues import queue_of
from tests.support.servers import free_port, valkey
from tests.support.wait import eventually
from worker import call
from worker.engine import EngineOptions
from worker.engine.poll import NEXT_JOB
from worker.errors import QueueMemoryFull, QueueUnavailable, UnsafeServer
from worker.keys import EngineKeys, QueueKeys

pytestmark = pytest.mark.faults

QUICK_POOL = PoolOptions(connect_timeout_s=1, socket_timeout_s=1, retries=0)


async def double(ctx: dict[str, Any], n: int = 1) -> int:
    return 2 * n


def counting() -> tuple[list[str], Any]:
    """Records the ids of the `count` jobs that have run."""
    runs: list[str] = []

    async def count(ctx: dict[str, Any]) -> None:
        runs.append(ctx["job_id"])

    return runs, func(count, name="count")


@asynccontextmanager
async def connect(url: str, options: PoolOptions = QUICK_POOL) -> AsyncIterator[Any]:
    async with open_pool(url, options, name="t", client_class=ArqRedis) as client:
        yield client


@pytest.fixture
async def proxy(valkey_url: str) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(valkey_url.removeprefix("unix://")) as proxy:
        yield proxy


async def test_a_lost_reply_neither_loses_nor_doubles_a_job(
    client: Any, prefix: str, proxy: FaultProxy
) -> None:
    runs, count = counting()
    queue = queue_of(client, prefix)
    jobs = await queue.enqueue_many([call("count") for _ in range(200)])
    async with (
        connect(proxy.url) as through,
        running(through, prefix, [count], max_jobs=10) as worker,
    ):
        proxy.cut_replies(12)
        for job in jobs:
            await job.result(timeout_s=30)
        await eventually(lambda: _is_counted(worker, 200))
    assert proxy.cuts_made == 12
    # No lease had to lapse: the poll that was sent again returned the same jobs.
    assert sorted(runs) == sorted(job.id for job in jobs)
    assert worker.jobs_rescued == 0


async def test_a_job_whose_token_was_lost_with_the_reply_runs_once(
    client: Any, prefix: str, proxy: FaultProxy
) -> None:
    runs, count = counting()
    queue = queue_of(client, prefix)
    await client.script_load(NEXT_JOB.source)
    wake = EngineKeys(QueueKeys(prefix)).wake
    proxy.cut_replies(3, marker=f"BZPOPMIN\r\n${len(wake)}\r\n{wake}".encode())
    # No periodic poll and no lapsed lease finds the job.
    seldom = EngineOptions(lease_s=60, poll_s=60, heartbeat_s=60)
    async with (
        connect(proxy.url) as through,
        running(through, prefix, [count], options=seldom) as worker,
    ):
        for n in range(3):
            await eventually(partial(_is_cut, proxy, n + 1))
            job = await queue.enqueue("count")
            await job.result(timeout_s=10)
        await eventually(lambda: _is_counted(worker, 3))
    assert len(runs) == len(set(runs)) == 3
    assert worker.jobs_rescued == 0


async def _is_cut(proxy: FaultProxy, times: int) -> bool:
    return proxy.cuts_made == times


async def _is_counted(worker: Any, count: int) -> bool:
    return bool(worker.jobs_complete == count)


async def test_a_repeated_enqueue_after_a_lost_reply_stores_one_job(
    client: Any, prefix: str, proxy: FaultProxy
) -> None:
    async with connect(proxy.url) as through:
        queue = queue_of(through, prefix)
        # Loads the script, so that the cut comes after its run.
        await queue.enqueue("double", job_id="first")
        proxy.cut_replies(1)
        with pytest.raises(QueueUnavailable):
            await queue.enqueue("double", 2, job_id="a")
        again = await queue.enqueue("double", 2, job_id="a")
    assert not again.is_new
    assert await client.zcard(f"{prefix}queue") == 2


async def test_connections_that_are_killed_cost_nothing(
    client: Any, prefix: str, proxy: FaultProxy
) -> None:
    queue = queue_of(client, prefix)
    async with connect(proxy.url) as through, running(through, prefix, [double]):
        for n in range(5):
            assert await (await queue.enqueue("double", n)).result(timeout_s=20) == 2 * n
            proxy.reset()


async def test_a_hung_server_is_logged_once_and_survived(
    client: Any, prefix: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    queue = queue_of(client, prefix)
    async with connect(proxy.url) as through, running(through, prefix, [double]) as worker:
        assert await (await queue.enqueue("double", 1)).result(timeout_s=10) == 2
        proxy.hold()
        await eventually(lambda: _is_connected(worker, False), deadline_s=20)
        proxy.release()
        await eventually(lambda: _is_connected(worker, True), deadline_s=20)
        assert await (await queue.enqueue("double", 2)).result(timeout_s=20) == 4
    assert caplog.text.count("queue.unreachable") == 1


@pytest.mark.parametrize("command", ["info", "eval", "time"])
async def test_a_server_that_goes_away_during_the_check_is_waited_for(
    client: Any, prefix: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await queue_of(client, prefix).enqueue("double", 2)
    failures = [RedisConnectionError("cut"), RedisTimeoutError("hung"), OSError("reset")]
    original = getattr(client, command)

    async def failing(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return await original(*args, **kwargs)

    monkeypatch.setattr(client, command, failing)
    async with running(client, prefix, [double]):
        assert await job.result(timeout_s=20) == 4
    assert not failures


async def test_a_server_that_refuses_during_the_check_ends_the_worker(
    client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refusing(*args: Any, **kwargs: Any) -> Any:
        raise NoPermissionError("NOPERM the user may not run ZADD")

    monkeypatch.setattr(client, "eval", refusing)
    with pytest.raises(RedisRefused, match="ZADD"):
        async with asyncio.timeout(20):
            await new_worker(client, prefix, [double]).main()


async def _is_connected(worker: Any, connected: bool) -> bool:
    return bool(worker.is_connected == connected)


async def test_a_server_that_restarts_with_its_aof_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    arguments = ("--appendonly", "yes", "--appendfsync", "always")
    runs: list[str] = []

    async def count(ctx: dict[str, Any]) -> None:
        runs.append(ctx["job_id"])
        await asyncio.sleep(0)

    async with connect(f"redis://127.0.0.1:{port}/0") as client:
        with valkey(tmp_path, *arguments, port=port):
            jobs = await queue_of(client, "arq:").enqueue_many([call("count")] * 500)
            worker = new_worker(client, "arq:", [func(count, name="count")], max_jobs=5)
            main = asyncio.create_task(worker.main())
            await eventually(lambda: _has(runs, 50))
            pid = (await client.info("server"))["process_id"]
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: _is_connected(worker, False), deadline_s=20)
        with valkey(tmp_path, *arguments, port=port):
            for job in jobs:
                await job.result(timeout_s=30)
            worker.force()
            await asyncio.wait_for(main, 20)
    assert set(runs) == {job.id for job in jobs}


async def _has(found: list[str], count: int) -> bool:
    return len(found) >= count


async def test_a_worker_can_end_while_its_server_is_away(
    client: Any, prefix: str, proxy: FaultProxy
) -> None:
    started = asyncio.Event()

    async def hang(ctx: dict[str, Any]) -> None:
        started.set()
        await asyncio.Event().wait()

    await queue_of(client, prefix).enqueue("hang")
    async with connect(proxy.url) as through:
        worker = new_worker(through, prefix, [func(hang, name="hang")])
        main = asyncio.create_task(worker.main())
        await asyncio.wait_for(started.wait(), 10)
        proxy.refuse = True
        proxy.reset()
        worker.drain()
        async with asyncio.timeout(30):
            await main
    # The lease lapses, and the next worker runs the job.
    async with running(client, prefix, [func(double, name="hang")], options=QUICK):
        await eventually(lambda: _is_empty(client, f"{prefix}queue"), deadline_s=20)


async def _is_empty(client: Any, key: str) -> bool:
    return not await client.exists(key)


async def test_a_full_server_refuses_new_jobs_and_finishes_its_own(
    tmp_path: Path,
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def hold(ctx: dict[str, Any]) -> str:
        started.set()
        await go.wait()
        return str(ctx["job_id"])

    with valkey(tmp_path, "--maxmemory-policy", "noeviction") as port:
        async with connect(f"redis://127.0.0.1:{port}/0") as client:
            queue = queue_of(client, "arq:")
            functions = [func(hold, name="hold")]
            jobs = await queue.enqueue_many([call("hold")] * 20)
            async with running(client, "arq:", functions, max_jobs=2, options=QUICK) as worker:
                await asyncio.wait_for(started.wait(), 10)
                await client.config_set("maxmemory", 1)
                with pytest.raises(QueueMemoryFull):
                    await queue.enqueue("hold")
                renewed = await _first_lease(client)
                await eventually(lambda: _is_later(client, renewed))
                go.set()
                for job in jobs:
                    assert await job.result(timeout_s=20) == job.id
                assert worker.jobs_rescued == 0
                await client.config_set("maxmemory", 0)
                later = await queue.enqueue("hold")
                assert await later.result(timeout_s=20) == later.id


async def _first_lease(client: Any) -> float:
    ends = await client.zrange("arq:queue:running", 0, 0, withscores=True)
    return float(ends[0][1])


async def _is_later(client: Any, end: float) -> bool:
    return await _first_lease(client) > end


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_may_evict_is_refused_with_the_remedy(
    tmp_path: Path, policy: str
) -> None:
    with valkey(tmp_path, "--maxmemory-policy", policy) as port:
        async with connect(f"redis://127.0.0.1:{port}/0") as client:
            worker = new_worker(client, "arq:", [double])
            with pytest.raises(UnsafeServer, match=r"noeviction.*LETTA_QUEUE_ALLOW_EVICTION"):
                await worker.main()


@pytest.mark.parametrize("aof", ["yes", "no"])
async def test_a_server_without_an_aof_is_logged(
    tmp_path: Path, aof: str, caplog: pytest.LogCaptureFixture
) -> None:
    with valkey(tmp_path, "--appendonly", aof) as port:
        async with connect(f"redis://127.0.0.1:{port}/0") as client:
            await burst(client, "arq:", [double])
    assert caplog.text.count("queue.server_without_aof") == (aof == "no")
