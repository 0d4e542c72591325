"""
The engine against its peers: `python benchmarks/bench_queue.py [--quick]`.

Each contender is one process at concurrency 32 on a fresh valkey-server over
loopback TCP. Rounds are interleaved and the medians compared: what disturbs the
machine disturbs all of them; CPU a job and commands a job are steadier than
rates. Ours and arq run in this environment; the other peers pin other versions
of redis-py and run in .venv/peers (`make bench` sets it up). Writes
out/bench_queue.json.

noop: N jobs wait, the worker starts, jobs a second until the last has run.
sleep: the same with 50 ms of sleep, as a share of the ideal 640 a second.
pickup: an idle worker, time from before the enqueue to the start of the job.
idle: commands a second of a worker without jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CONCURRENCY = 32
SLEEP_S = 0.05
PEERS = ["ours", "arq", "arq_tuned", "saq", "streaq", "taskiq_stream", "dramatiq"]


# -- the contenders: what runs in the child process -------------------------------------


class Counter:
    """Counts runs; tells when the last is over. Jobs of all contenders call it."""

    def __init__(self) -> None:
        self.runs = 0
        self.last = 0.0
        self.waits: list[float] = []

    def ran(self, sent: float | None = None) -> None:
        if sent is not None:
            self.waits.append(time.time() - sent)
        self.runs += 1
        self.last = time.perf_counter()


COUNTER = Counter()


async def job(_ctx: Any, kind: str = "noop", sent: float | None = None) -> None:
    COUNTER.ran(sent) if kind != "sleep" else None
    if kind == "sleep":
        await asyncio.sleep(SLEEP_S)
        COUNTER.ran()


Enqueue = Callable[..., Awaitable[Any]]


class Contender:
    """`enqueue(kind, sent)`, and `work()` which runs until cancelled."""

    async def open(self, url: str) -> None: ...

    async def enqueue(self, kind: str, sent: float | None = None) -> None:
        raise NotImplementedError

    async def work(self) -> None:
        raise NotImplementedError


class Ours(Contender):
    async def open(self, url: str) -> None:
        import logging

        import structlog
        from arq.connections import ArqRedis

        from cache.pool import PoolOptions, build_client
        from worker.client import JobQueue

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        self.client = build_client(url, PoolOptions(), name="b", client_class=ArqRedis)
        self.queue = JobQueue(self.client)

    async def enqueue(self, kind: str, sent: float | None = None) -> None:
        await self.queue.enqueue("job", kind, sent)

    async def work(self) -> None:
        from worker.engine import Worker

        worker = Worker([job], redis_pool=self.client, max_jobs=CONCURRENCY, handle_signals=False)
        await worker.main()


class Arq(Contender):
    options: ClassVar[dict[str, Any]] = {}

    async def open(self, url: str) -> None:
        import logging

        from arq.connections import RedisSettings, create_pool

        logging.disable(logging.WARNING)
        self.settings = RedisSettings.from_dsn(url)
        self.pool = await create_pool(self.settings)

    async def enqueue(self, kind: str, sent: float | None = None) -> None:
        await self.pool.enqueue_job("job", kind, sent)

    async def work(self) -> None:
        from arq.worker import Worker

        functions: Any = [job]
        worker = Worker(
            functions, redis_settings=self.settings, handle_signals=False, **self.options
        )
        await worker.async_run()


class ArqTuned(Arq):
    options: ClassVar[dict[str, Any]] = {"max_jobs": CONCURRENCY, "poll_delay": 0.01}


class Saq(Contender):
    async def open(self, url: str) -> None:
        from saq import Queue

        self.queue = Queue.from_url(url)

    async def enqueue(self, kind: str, sent: float | None = None) -> None:
        await self.queue.enqueue("saq_job", kind=kind, sent=sent)

    async def work(self) -> None:
        from saq import Worker

        async def saq_job(ctx: Any, *, kind: str, sent: float | None) -> None:
            await job(ctx, kind, sent)

        functions: Any = [("saq_job", saq_job)]
        await Worker(self.queue, functions=functions, concurrency=CONCURRENCY).start()


class Streaq(Contender):
    """One of its Workers enqueues, another runs: a worker is a context of its own."""

    def _worker(self, url: str) -> tuple[Any, Any]:
        from streaq import Worker

        worker: Any = Worker(redis_url=url, concurrency=CONCURRENCY, handle_signals=False)

        @worker.task(name="job")  # type: ignore[untyped-decorator]
        async def streaq_job(kind: str, sent: float | None) -> None:
            await job(None, kind, sent)

        return worker, streaq_job

    async def open(self, url: str) -> None:
        self.worker, _ = self._worker(url)
        self.sender, self.task = self._worker(url)
        await self.sender.__aenter__()

    async def enqueue(self, kind: str, sent: float | None = None) -> None:
        await self.task.enqueue(kind, sent)

    async def work(self) -> None:
        await self.worker.run_async()


class TaskiqStream(Contender):
    async def open(self, url: str) -> None:
        from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

        backend: Any = RedisAsyncResultBackend(redis_url=url)
        self.broker: Any = RedisStreamBroker(url=url).with_result_backend(backend)

        @self.broker.task(task_name="job")  # type: ignore[untyped-decorator]
        async def taskiq_job(kind: str, sent: float | None) -> None:
            await job(None, kind, sent)

        self.task = taskiq_job
        self.broker.is_worker_process = True
        await self.broker.startup()

    async def enqueue(self, kind: str, sent: float | None = None) -> None:
        await self.task.kiq(kind, sent)

    async def work(self) -> None:
        from taskiq.api import run_receiver_task

        await run_receiver_task(self.broker, max_async_tasks=CONCURRENCY)


class Dramatiq(Contender):
    """Threads: its sleeping job blocks one of 32."""

    async def open(self, url: str) -> None:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        self.broker: Any = RedisBroker(url=url)
        dramatiq.set_broker(self.broker)

        def dramatiq_job(kind: str, sent: float | None) -> None:
            if kind == "sleep":
                time.sleep(SLEEP_S)
            COUNTER.ran(sent)

        self.actor = dramatiq.actor(dramatiq_job, actor_name="job")

    async def enqueue(self, kind: str, sent: float | None = None) -> None:
        self.actor.send(kind, sent)

    async def work(self) -> None:
        from dramatiq import Worker

        worker: Any = Worker(self.broker, worker_threads=CONCURRENCY)
        worker.start()
        await asyncio.Event().wait()


CONTENDERS: dict[str, type[Contender]] = {
    "ours": Ours,
    "arq": Arq,
    "arq_tuned": ArqTuned,
    "saq": Saq,
    "streaq": Streaq,
    "taskiq_stream": TaskiqStream,
    "dramatiq": Dramatiq,
}


async def child(name: str, url: str, workload: str, count: int) -> None:
    contender = CONTENDERS[name]()
    await contender.open(url)
    report: dict[str, float] = {}
    if workload in ("noop", "sleep"):
        begun = time.perf_counter()
        for _ in range(count):
            await contender.enqueue(workload)
        report["enqueue_per_s"] = count / (time.perf_counter() - begun)
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    begun, cpu = time.perf_counter(), time.process_time()
    working = asyncio.ensure_future(contender.work())
    if workload == "pickup":
        await asyncio.sleep(2)
        for n in range(count):
            await contender.enqueue("pickup", time.time())
            while len(COUNTER.waits) <= n:  # noqa: ASYNC110  (dramatiq counts from threads)
                await asyncio.sleep(0.02)
        waits = sorted(COUNTER.waits)
        report["p50_ms"] = statistics.median(waits) * 1e3
        report["p99_ms"] = waits[int(len(waits) * 0.99) - 1] * 1e3
    elif workload == "idle":
        await asyncio.sleep(3)
        say("settled")
        await asyncio.sleep(count)
    else:
        while COUNTER.runs < count and not working.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        report["jobs_per_s"] = count / (COUNTER.last - begun)
        report["cpu_us"] = (time.process_time() - cpu) / count * 1e6
    say("report " + json.dumps(report))
    os._exit(0)


def say(line: str) -> None:
    print(line, flush=True)


# -- the parent ---------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[int]:
    import socket

    from cache.embedded import server_binary

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        options = ["--port", str(port), "--save", "", "--dir", home, "--loglevel", "warning"]
        process = subprocess.Popen([str(server_binary()), *options], stdout=subprocess.DEVNULL)
        try:
            yield port
        finally:
            process.terminate()
            process.wait()


def info(port: int) -> dict[str, Any]:
    import redis

    with redis.Redis(port=port) as client:
        client.ping()
        found: dict[str, Any] = client.info("stats")
        return found


def wait_for_server(port: int) -> None:
    import redis

    while True:
        try:
            info(port)
        except redis.ConnectionError:
            time.sleep(0.02)
        else:
            return


def python_of(name: str) -> str:
    if name in ("ours", "arq", "arq_tuned"):
        return sys.executable
    return str(ROOT / ".venv" / "peers" / "bin" / "python")


def run(name: str, workload: str, count: int) -> dict[str, float]:
    """One contender, one workload, on a server of its own."""
    with server() as port:
        wait_for_server(port)
        url = f"redis://127.0.0.1:{port}/0"
        command = [python_of(name), __file__, "--child", name, url, workload, str(count)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        before: dict[str, Any] = {}
        report: dict[str, float] = {}
        for line in process.stdout:
            if line.startswith("ready"):
                before = info(port)
                process.stdin.write("\n")
                process.stdin.flush()
            elif line.startswith("settled"):
                before = info(port)
            elif line.startswith("report"):
                report = json.loads(line.removeprefix("report "))
                break
        after = info(port)
        process.kill()
        process.wait()
    if not report and workload != "idle":
        return {}
    commands = after["total_commands_processed"] - before.get("total_commands_processed", 0)
    reads = after["total_reads_processed"] - before.get("total_reads_processed", 0)
    if workload == "idle":
        # A script's own commands count in the first; what a client sends, in the second.
        report["commands_per_s"] = commands / count
        report["requests_per_s"] = reads / count
    elif workload in ("noop", "sleep"):
        report["commands_a_job"] = commands / count
        report["writes_a_job"] = reads / count
    return report


def median(reports: list[dict[str, float]]) -> dict[str, float]:
    return {
        key: round(statistics.median(r[key] for r in reports if key in r), 3)
        for key in {key for r in reports for key in r}
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="one round of few jobs")
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--child", nargs=4, metavar=("NAME", "URL", "WORKLOAD", "COUNT"))
    options = parser.parse_args()
    if options.child:
        name, url, workload, count = options.child
        asyncio.run(child(name, url, workload, int(count)))
        return
    rounds = 1 if options.quick else 3
    work = {"noop": 5000, "sleep": 640, "pickup": 100, "idle": 8}
    if options.quick:
        work = {"noop": 3000, "sleep": 320, "pickup": 30, "idle": 4}
    names = [n for n in options.only.split(",") if n and Path(python_of(n)).exists()]
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for round_ in range(rounds):
        for workload, count in work.items():
            if workload == "idle" and round_:
                continue
            for name in names:
                slow = name == "arq" and workload == "noop"
                report = run(name, workload, count // 5 if slow else count)
                found.setdefault(workload, {}).setdefault(name, []).append(report)
                print(f"round {round_ + 1} {workload:<7}{name:<14}{report}", flush=True)
    table = {w: {n: median(r) for n, r in rows.items()} for w, rows in found.items()}
    for workload, rows in table.items():
        print(f"\n{workload}")
        for name, row in rows.items():
            print(f"  {name:<14}" + "  ".join(f"{k}={v:g}" for k, v in sorted(row.items())))
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    (out / "bench_queue.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
