"""
The queue on a cluster of three against one server: what `bench_cluster.py` measures of it.

The same worker process serves both in turns, on servers with the same options, an
append-only file and no replica. `python benchmarks/cluster_queue.py URL BURST` is that process.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arq.worker import func

from cache.connection.pool import PoolOptions, open_pool
from cache.connection.shared_scripts import ScriptRedis
from tests.support.queues import queue_of
from worker import JobQueue, call
from worker.engine import Worker
from worker.keys import QUEUE_TAG, QueueKeys

JOBS, SINGLE, PICKUPS, IDLE_S = 5000, 500, 1000, 40.0
SAME = ("--appendonly", "yes", "--appendfsync", "always")


async def noop(ctx: dict[str, Any]) -> float:  # noqa: ARG001  (arq names it)
    """Return when the job was picked up."""
    return time.time()


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Any]:
    opened = open_pool(url, PoolOptions(), name="bench", client_class=ScriptRedis, tag=QUEUE_TAG)
    async with opened as client:
        yield client


async def work(url: str, *, burst: bool) -> None:
    async with client_of(url) as client:
        worker = Worker(
            [func(noop, name="noop")],
            redis_pool=client,
            prefix=QueueKeys.of(client).prefix,
            burst=burst,
            max_jobs=20,
        )
        started = time.monotonic()
        await worker.main()
        print(worker.jobs_complete / (time.monotonic() - started))


@asynccontextmanager
async def process(url: str, *, burst: bool) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, __file__, url, str(int(burst))]
    made = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield made
    finally:
        if made.returncode is None:
            made.terminate()
        await made.wait()


async def cpu_s(client: Any) -> float:
    info = await client.info("cpu")
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])


async def commands(client: Any) -> int:
    """Count what the worker sends in IDLE_S. INFO would count what its scripts call as well."""
    sent = 0
    async with client.monitor() as monitor:
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_S):
                while True:
                    sent += (await monitor.next_command())["client_type"] != "lua"
    return sent


async def drained(url: str, client: Any, queue: JobQueue) -> dict[str, float]:
    """One process empties the queue."""
    await queue.enqueue_many([call("noop")] * JOBS)
    before = await cpu_s(client)
    async with process(url, burst=True) as worker:
        out, _ = await worker.communicate()
    used = await cpu_s(client) - before
    return {"server CPU, us/job": used / JOBS * 1e6, "jobs/s": float(out)}


async def enqueued(queue: JobQueue) -> dict[str, float]:
    started = time.monotonic()
    for _ in range(SINGLE):
        await queue.enqueue("noop", delay_s=3600)
    return {"enqueues/s, one at a time": SINGLE / (time.monotonic() - started)}


async def picked_up(url: str, client: Any, queue: JobQueue, waits: list[float]) -> dict[str, float]:
    """A waiting worker: how soon it starts each job, what it sends while it is idle, its connections."""
    async with process(url, burst=False):
        job = await queue.enqueue("noop")
        await job.result(timeout_s=60)
        for _ in range(PICKUPS):
            at = time.time()
            waits.append(await (await queue.enqueue("noop")).result(timeout_s=60) - at)
        sent = await commands(client)
        connections = len(await client.client_list())
    return {
        "idle commands/s": sent / IDLE_S,
        "connections of worker and client": float(connections),
    }


def pickups(waits: list[float]) -> dict[str, float]:
    """Of all rounds together: one round has too few for a p99."""
    cuts = statistics.quantiles(waits, n=100)
    return {
        "pickup p50, ms": cuts[49] * 1e3,
        "pickup p99, ms": cuts[98] * 1e3,
        "pickups": float(len(waits)),
    }


async def compare(urls: dict[str, str], rounds: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    waits: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(rounds):
        for name in list(urls)[:: 1 if number % 2 else -1]:
            url = urls[name]
            async with client_of(url) as client:
                await client.flushall()
                queue = queue_of(client, QueueKeys.of(client).prefix)
                row = await drained(url, client, queue)
                row |= await enqueued(queue)
                await client.flushall()  # an idle worker has nothing to wait for
                found[name].append(row | await picked_up(url, client, queue, waits[name]))
    middle: Callable[[list[float]], float] = statistics.median
    return {
        name: {key: middle([row[key] for row in rows]) for key in rows[0]} | pickups(waits[name])
        for name, rows in found.items()
    }


def show(figures: dict[str, dict[str, float]]) -> None:
    one, many = figures["one server"], figures["cluster"]
    print(f"\nThe queue, medians of rounds{'':7}{'one server':>12}{'cluster':>12}{'ratio':>8}")
    for key, value in one.items():
        ratio = many[key] / value if value else float("nan")
        print(f"  {key:33}{value:12.2f}{many[key]:12.2f}{ratio:8.2f}")


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], burst=sys.argv[2] == "1"))
