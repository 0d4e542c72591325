"""After a failover of the queue's server, the worker continues its jobs on the new server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import structlog
from arq.connections import ArqRedis
from arq.worker import func

from cache.connection.pool import OUTAGE, PoolOptions, open_pool
from tests.support.engine import running
from tests.support.fault_proxy import fault_proxy
from tests.support.queues import queue_of
from tests.support.sentinels import SERVICE, Watched, watched_servers
from tests.support.servers import valkey
from tests.support.wait import eventually
from worker import call
from worker.engine import EngineOptions
from worker.errors import QueueUnavailable

pytestmark = pytest.mark.faults

POOL = PoolOptions(connect_timeout_s=1, socket_timeout_s=2)
# The lease outlasts a failover, so that running jobs are not claimed again. Polls are so rare
# that only a token can wake the worker in time.
OPTIONS = EngineOptions(lease_s=15.0, poll_s=60.0, abort_poll_s=0.05, heartbeat_s=0.3)
QUICK_SYNC = ("--repl-diskless-sync-delay", "0")
OUTAGE_EVENTS = ["queue.unreachable", "queue.reached"]
RUNNING, QUEUED = 8, 300


class Work:
    """Jobs that record their start and wait until they may end."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.go = asyncio.Event()

    async def hold(self, ctx: dict[str, Any]) -> str:
        self.runs[ctx["job_id"]] += 1
        await self.go.wait()
        return str(ctx["job_id"])


async def _kill(servers: Watched) -> None:
    pid = (await servers.master.info("server"))["process_id"]
    os.kill(pid, signal.SIGKILL)


async def _hand_over(servers: Watched) -> None:
    await servers.sentinels[0].execute_command("SENTINEL", "FAILOVER", SERVICE)


@pytest.mark.parametrize("fail_over", [_kill, _hand_over])
async def test_after_a_failover_no_replicated_job_is_lost(tmp_path: Path, fail_over: Any) -> None:
    work = Work()
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(watched_servers(tmp_path))
        client = await stack.enter_async_context(
            open_pool(servers.url, POOL, name="t", client_class=ArqRedis)
        )
        queue = queue_of(client, "arq:")
        logs = stack.enter_context(structlog.testing.capture_logs())
        jobs = await queue.enqueue_many([call("hold")] * (RUNNING + QUEUED))
        worker = await stack.enter_async_context(
            running(
                client, "arq:", [func(work.hold, name="hold")], max_jobs=RUNNING, options=OPTIONS
            )
        )
        await eventually(lambda: _is(len(work.runs) == RUNNING))
        await servers.replicated()

        await fail_over(servers)
        await eventually(servers.promoted, deadline_s=60)
        before = await _times(servers.replica, worker)
        await eventually(lambda: _lives_on(servers.replica, worker, before), deadline_s=30)
        work.go.set()
        for job in jobs:
            assert await _patiently(lambda job=job: job.result(timeout_s=60)) == job.id  # type: ignore[misc]
        # The worker is idle: only the token of an enqueue on the new server wakes it.
        late = await _patiently(lambda: queue.enqueue("hold", job_id="late"))
        assert await late.result(timeout_s=20) == late.id

        assert set(work.runs) == {job.id for job in [*jobs, late]}
        assert set(work.runs.values()) == {1}
        assert await servers.replica.zcard("arq:queue") == 0
        logged = [line["event"] for line in logs if line["event"] in OUTAGE_EVENTS]
        assert logged == OUTAGE_EVENTS


async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Return the answer as soon as no connection to the old server is left."""

    async def look() -> Any:
        with suppress(QueueUnavailable):
            return await ask()

    return await eventually(look, deadline_s=60)


async def _is(value: bool) -> bool:
    return value


async def _lives_on(server: Any, worker: Any, before: tuple[float, float]) -> bool:
    """Whether leases are renewed and heartbeats arrive on this server."""
    times = await _times(server, worker)
    return all(now > then for now, then in zip(times, before, strict=True))


async def _times(server: Any, worker: Any) -> tuple[float, float]:
    """Return the end of the first lease and the time of the last heartbeat."""
    with suppress(*OUTAGE):
        ends = await server.zrange(worker.keys.running, 0, -1, withscores=True)
        heartbeat = await server.zscore(worker.keys.base.workers, worker.worker_id)
        return min((score for _, score in ends), default=0.0), heartbeat or 0.0
    return 0.0, 0.0


async def test_a_server_demoted_behind_its_address_is_abandoned(
    tmp_path: Path, prefix: str
) -> None:
    """Behind a DNS name or a virtual address, connections to the old server stay open."""
    work = Work()
    async with AsyncExitStack() as stack:
        # Socket paths are limited to about 100 bytes.
        home = stack.enter_context(TemporaryDirectory(prefix="fail-"))
        old_path, new_path = f"{home}/old", f"{home}/new"
        old_port = stack.enter_context(
            valkey(tmp_path / "old", "--unixsocket", old_path, *QUICK_SYNC)
        )
        new_port = stack.enter_context(
            valkey(tmp_path / "new", "--unixsocket", new_path, *QUICK_SYNC)
        )
        old = await stack.enter_async_context(open_pool(f"unix://{old_path}", POOL, name="old"))
        new = await stack.enter_async_context(open_pool(f"unix://{new_path}", POOL, name="new"))
        proxy = await stack.enter_async_context(fault_proxy(old_path))
        client = await stack.enter_async_context(
            open_pool(proxy.url, POOL, name="t", client_class=ArqRedis)
        )
        queue = queue_of(client, prefix)
        jobs = await queue.enqueue_many([call("hold")] * RUNNING)
        logs = stack.enter_context(structlog.testing.capture_logs())
        functions = [func(work.hold, name="hold")]
        worker = await stack.enter_async_context(
            running(client, prefix, functions, max_jobs=RUNNING, options=OPTIONS)
        )
        await eventually(lambda: _is(len(work.runs) == RUNNING))

        await new.replicaof("127.0.0.1", old_port)
        await eventually(lambda: _is_copy(new, worker.keys.running, RUNNING), deadline_s=30)
        proxy.lead_to(new_path)
        await new.replicaof("NO", "ONE")
        await old.replicaof("127.0.0.1", new_port)

        before = await _times(new, worker)
        await eventually(lambda: _lives_on(new, worker, before), deadline_s=30)
        work.go.set()
        for job in jobs:
            assert await _patiently(lambda job=job: job.result(timeout_s=60)) == job.id  # type: ignore[misc]
        late = await _patiently(lambda: queue.enqueue("hold", job_id="late"))
        assert await late.result(timeout_s=30) == late.id
        assert set(work.runs.values()) == {1}
        assert not any(line["log_level"] == "error" for line in logs)


async def _is_copy(server: Any, key: str, members: int) -> bool:
    return bool(await server.zcard(key) == members)
