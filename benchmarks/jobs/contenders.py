"""
Defines the compared job queues, each with the same job at concurrency 32.

A contender's imports are inside its class, because each runs in its own environment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, ClassVar

CONCURRENCY = 32
SLEEP_S = 0.05


class Ledger:
    """Records what ran and when. The jobs of all contenders write here; dramatiq's from threads."""

    def __init__(self) -> None:
        self.runs = 0
        self.numbers: list[int] = []
        self.waits: list[float] = []
        self.first = self.last = self.reached = 0.0
        self.goal = 0  # of so many runs the end is noted

    def started(self, number: int, sent: float) -> None:
        now = time.time()
        self.first = self.first or now
        self.numbers.append(number)
        if sent:
            self.waits.append(now - sent)

    def ended(self) -> None:
        self.last = time.time()
        self.runs += 1
        if self.runs == self.goal:
            self.reached = self.last


LEDGER = Ledger()


async def job(_ctx: Any, kind: str = "noop", number: int = 0, sent: float = 0.0) -> None:
    LEDGER.started(number, sent)
    if kind == "sleep":
        await asyncio.sleep(SLEEP_S)
    LEDGER.ended()


class Contender:
    """`enqueue` a job, `fill` the queue with many, `work` until cancelled."""

    async def open(self, url: str) -> None: ...

    async def enqueue(self, kind: str, number: int = 0, sent: float = 0.0) -> None:
        raise NotImplementedError

    async def fill(self, kind: str, count: int) -> None:
        for number in range(count):
            await self.enqueue(kind, number)

    async def work(self) -> None:
        raise NotImplementedError


class Ours(Contender):
    async def open(self, url: str) -> None:
        import structlog

        import worker.engine  # noqa: F401  (what a worker imports is not part of a job's cost)
        from cache.connection.pool import PoolOptions, build_client
        from settings import Settings
        from worker.app.arq_client import WorkerRedis
        from worker.app.composition import build_queue, build_stores
        from worker.app.options import queue_options

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        self.client = build_client(url, PoolOptions(), name="bench", client_class=WorkerRedis)
        # As the contenders: no limit on the queue's length or the server's memory.
        options = queue_options(Settings(queue_max_length=0, queue_max_memory_share=0.0))
        self.queue = build_queue(build_stores(self.client, options), options)

    async def enqueue(self, kind: str, number: int = 0, sent: float = 0.0) -> None:
        await self.queue.enqueue("job", kind, number, sent)

    async def fill(self, kind: str, count: int) -> None:
        from worker.queue.calls import Call

        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            await self.queue.enqueue_many([Call("job", (kind, n, 0.0)) for n in numbers])

    async def work(self) -> None:
        from worker.engine import Worker

        worker = Worker([job], redis_pool=self.client, max_jobs=CONCURRENCY, handle_signals=False)
        await worker.main()


class Arq(Contender):
    options: ClassVar[dict[str, Any]] = {}

    async def open(self, url: str) -> None:
        from arq.connections import RedisSettings, create_pool

        logging.disable(logging.WARNING)
        self.settings = RedisSettings.from_dsn(url)
        self.pool = await create_pool(self.settings)

    async def enqueue(self, kind: str, number: int = 0, sent: float = 0.0) -> None:
        await self.pool.enqueue_job("job", kind, number, sent)

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

    async def enqueue(self, kind: str, number: int = 0, sent: float = 0.0) -> None:
        await self.queue.enqueue("saq_job", kind=kind, number=number, sent=sent)

    async def work(self) -> None:
        from saq import Worker

        async def saq_job(ctx: Any, *, kind: str, number: int, sent: float) -> None:
            await job(ctx, kind, number, sent)

        functions: Any = [("saq_job", saq_job)]
        await Worker(self.queue, functions=functions, concurrency=CONCURRENCY).start()


class Streaq(Contender):
    """streaq: one Worker enqueues and another one runs, because a Worker is its own context."""

    def _worker(self, url: str) -> tuple[Any, Any]:
        from streaq import Worker

        worker: Any = Worker(redis_url=url, concurrency=CONCURRENCY, handle_signals=False)

        @worker.task(name="job")  # type: ignore[untyped-decorator]
        async def streaq_job(kind: str, number: int, sent: float) -> None:
            await job(None, kind, number, sent)

        return worker, streaq_job

    async def open(self, url: str) -> None:
        self.worker, _ = self._worker(url)
        self.sender, self.task = self._worker(url)
        await self.sender.__aenter__()

    async def enqueue(self, kind: str, number: int = 0, sent: float = 0.0) -> None:
        await self.task.enqueue(kind, number, sent)

    async def work(self) -> None:
        await self.worker.run_async()


class TaskiqStream(Contender):
    async def open(self, url: str) -> None:
        from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

        backend: Any = RedisAsyncResultBackend(redis_url=url)
        self.broker: Any = RedisStreamBroker(url=url).with_result_backend(backend)

        @self.broker.task(task_name="job")  # type: ignore[untyped-decorator]
        async def taskiq_job(kind: str, number: int, sent: float) -> None:
            await job(None, kind, number, sent)

        self.task = taskiq_job
        self.broker.is_worker_process = True
        await self.broker.startup()

    async def enqueue(self, kind: str, number: int = 0, sent: float = 0.0) -> None:
        await self.task.kiq(kind, number, sent)

    async def work(self) -> None:
        from taskiq.api import run_receiver_task

        await run_receiver_task(self.broker, max_async_tasks=CONCURRENCY)


class Dramatiq(Contender):
    """dramatiq: runs jobs in threads, so a sleeping job blocks one of 32."""

    async def open(self, url: str) -> None:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        self.broker: Any = RedisBroker(url=url)
        dramatiq.set_broker(self.broker)

        def dramatiq_job(kind: str, number: int, sent: float) -> None:
            LEDGER.started(number, sent)
            if kind == "sleep":
                time.sleep(SLEEP_S)
            LEDGER.ended()

        self.actor = dramatiq.actor(dramatiq_job, actor_name="job")

    async def enqueue(self, kind: str, number: int = 0, sent: float = 0.0) -> None:
        self.actor.send(kind, number, sent)

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
