"""
The queue on a cluster of three against one server: what `bench_cluster.py` measures of it.

The same worker process serves both, on servers with the same options, an append-only
file and no replica. Enqueues and pickups wait for the disk at each call, which a shared
machine disturbs by the second: both take turns in blocks of a fraction of a second.
`python benchmarks/cluster_queue.py URL BURST` is the worker process.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
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

JOBS, IDLE_S = 5000, 40.0
# Blocks of a round, and calls of a block.
BLOCKS, SINGLE, PICKUPS = 10, 50, 100
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


async def enqueued(queue: JobQueue) -> float:
    """Enqueues a second, one at a time."""
    started = time.monotonic()
    for _ in range(SINGLE):
        await queue.enqueue("noop", delay_s=3600)
    return SINGLE / (time.monotonic() - started)


async def picked_up(queue: JobQueue) -> list[float]:
    """How soon a waiting worker starts each job, ms."""
    waits = []
    for _ in range(PICKUPS):
        at = time.time()
        job = await queue.enqueue("noop")
        waits.append((await job.result(timeout_s=60) - at) * 1e3)
    return waits


async def idle(client: Any) -> dict[str, float]:
    """What a waiting worker sends while nothing happens, and its connections."""
    sent = await commands(client)
    return {
        "idle commands/s": sent / IDLE_S,
        "connections of worker and client": float(len(await client.client_list())),
    }


def percentiles(waits: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(waits, n=100)
    return {
        "pickup p50, ms": cuts[49],
        "pickup p99, ms": cuts[98],
        "pickups": float(len(waits)),
    }


class Side:
    """One of the two: its URL, a client, a queue, and what was found on it."""

    def __init__(self, url: str, client: Any) -> None:
        self.url, self.client = url, client
        self.queue = queue_of(client, QueueKeys.of(client).prefix)
        self.drains: list[dict[str, float]] = []
        self.enqueues: list[float] = []
        self.waits: list[float] = []
        self.idle: dict[str, float] = {}

    async def drain(self) -> None:
        await self.client.flushall()
        self.drains.append(await drained(self.url, self.client, self.queue))

    async def enqueue(self) -> None:
        self.enqueues.append(await enqueued(self.queue))

    async def pick_up(self) -> None:
        self.waits += await picked_up(self.queue)

    def figures(self) -> dict[str, float]:
        middle = statistics.median
        return {
            **{key: middle(row[key] for row in self.drains) for key in self.drains[0]},
            "enqueues/s, one at a time": middle(self.enqueues),
            **self.idle,
            **percentiles(self.waits),
        }


async def in_turns(sides: list[Side], rounds: int, step: Callable[[Side], Awaitable[None]]) -> None:
    for number in range(rounds):
        for side in sides[:: 1 if number % 2 else -1]:
            await step(side)


async def compare(urls: dict[str, str], rounds: int) -> dict[str, dict[str, float]]:
    async with AsyncExitStack() as stack:
        sides = [
            Side(url, await stack.enter_async_context(client_of(url))) for url in urls.values()
        ]
        await in_turns(sides, 2 * rounds, Side.drain)
        await in_turns(sides, rounds * BLOCKS, Side.enqueue)
        for side in sides:
            await side.client.flushall()  # an idle worker has nothing to wait for
        for side in sides:
            await stack.enter_async_context(process(side.url, burst=False))
            await (await side.queue.enqueue("noop")).result(timeout_s=60)
        await in_turns(sides, rounds * BLOCKS, Side.pick_up)
        for side in sides:
            side.idle = await idle(side.client)
        return {name: side.figures() for name, side in zip(urls, sides, strict=True)}


def show(figures: dict[str, dict[str, float]]) -> None:
    one, many = figures["one server"], figures["cluster"]
    print(f"\nThe queue, medians of rounds{'':7}{'one server':>12}{'cluster':>12}{'ratio':>8}")
    for key, value in one.items():
        ratio = many[key] / value if value else float("nan")
        print(f"  {key:33}{value:12.2f}{many[key]:12.2f}{ratio:8.2f}")


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], burst=sys.argv[2] == "1"))
