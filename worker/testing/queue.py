"""Extends `JobQueue` for tests: drain the queue, list and assert jobs, trigger cron jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cache.encoding import codec
from worker.client import JobQueue
from worker.errors import NotFound, ResultTimeout
from worker.keys import QueueKeys
from worker.queue.job import Job
from worker.queue.priority import Priority

if TYPE_CHECKING:
    from settings import Settings
    from worker.engine import Worker

# Test queues are short, so reading the whole queue is cheap.
_LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class EnqueuedJob:
    """A job that waits to run."""

    id: str
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    priority: Priority
    due_at: datetime


@dataclass(frozen=True, slots=True)
class DrainCounts:
    """Runs since the queue was opened, by outcome; `failed` counts dead and aborted jobs."""

    completed: int = 0
    retried: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a job is; `due_ms` has no meaning for a running job."""

    id: str
    priority: Priority
    due_ms: float
    is_running: bool


class TestingQueue(JobQueue):
    """
    `JobQueue` with methods for tests.

    settings: to open more clients on the same database: `open_queue(queue.settings)`,
        `open_cache(queue.settings)`, or LETTA_REDIS_URL = `queue.settings.redis_url`.
    """

    __test__ = False  # because of its name, pytest would collect it as a test class

    def __init__(
        self,
        queue: JobQueue,
        client: Any,
        keys: QueueKeys,
        *,
        settings: Settings,
        crons: Sequence[str],
        new_worker: Callable[[], Worker],
    ) -> None:
        super().__init__(queue.jobs, queue.webhooks, queue.llm, queue.dead)
        self._client = client
        self._keys = keys
        self.settings = settings
        self._crons = crons
        self._new_worker = new_worker
        self._working: tuple[Worker, asyncio.Task[None]] | None = None
        self._counts = DrainCounts()

    async def drained(self, *, timeout_s: float = 5.0, scheduled: bool = False) -> DrainCounts:
        """
        Run jobs until none is left, including jobs that they enqueue and retries.

        Jobs that are due after the timeout stay; with `scheduled` every waiting job
        is made due now. With `run_jobs=False` a worker runs during the call.

        Raises:
            ResultTimeout: jobs are left; the message names them.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        async with self.working() as (worker, main):
            while True:
                jobs = await self._unfinished(deadline, scheduled=scheduled)
                # The server records a job's end before its worker counts it.
                if not jobs and not worker.has_unsent_ends:
                    return _add(self._counts, worker)
                if main.done():
                    main.result()
                if loop.time() > deadline:
                    left = ", ".join([await self._describe(job) for job in jobs])
                    raise ResultTimeout(f"not drained after {timeout_s:g} s: {left}")
                await asyncio.sleep(_LOOK_EVERY_S)

    async def enqueued(self, name: str | None = None) -> list[EnqueuedJob]:
        """
        The waiting jobs in the order of their due times; with a name, only that function's.

        Running and ended jobs are not included: open the queue with `run_jobs=False`
        to see what the code under test enqueues.
        """
        places, _ = await self._snapshot()
        waiting = sorted((p for p in places if not p.is_running), key=lambda p: p.due_ms)
        jobs = [await self._read(place) for place in waiting]
        return [job for job in jobs if job is not None and name in (None, job.name)]

    async def assert_enqueued(self, name: str, *args: Any, **kwargs: Any) -> EnqueuedJob:
        """
        Return the first waiting job of that name whose arguments begin with `args` and contain `kwargs`.

        Raises:
            AssertionError: there is none; the message lists the waiting jobs.
        """
        waiting = await self.enqueued()
        for job in waiting:
            if (
                job.name == name
                and job.args[: len(args)] == args
                and kwargs.items() <= job.kwargs.items()
            ):
                return job
        wanted = _call_text(name, args, kwargs)
        found = "; ".join(_call_text(job.name, job.args, job.kwargs) for job in waiting)
        raise AssertionError(f"{wanted} is not enqueued; waiting jobs: {found or 'none'}")

    async def trigger(self, name: str) -> Job:
        """
        Enqueue a cron job, or a job that `schedule` registered, as if it were due.

        Raises:
            NotFound: there is none of that name; the message lists the known names.
        """
        for cron in (name, f"cron:{name}"):
            if cron in self._crons:
                return await self.enqueue(cron)
        schedules = {schedule.id: schedule.job for schedule in await self.jobs.schedules()}
        if name not in schedules:
            known = ", ".join([*self._crons, *schedules])
            raise NotFound(f"no cron job or schedule {name!r}; known: {known}")
        (job,) = await self.enqueue_many([schedules[name]])
        return job

    # -- inside ------------------------------------------------------------------

    @asynccontextmanager
    async def working(self) -> AsyncIterator[tuple[Worker, asyncio.Task[None]]]:
        """Run a worker during the block, unless one runs already."""
        if self._working is not None:
            yield self._working
            return
        worker = self._new_worker()
        main = asyncio.create_task(worker.main())
        self._working = worker, main
        try:
            yield self._working
        finally:
            self._working = None
            worker.force()
            await main
            self._counts = _add(self._counts, worker)

    async def _unfinished(self, deadline: float, *, scheduled: bool) -> list[_Place]:
        """The jobs to wait for; with `scheduled`, makes later ones due now."""
        places, now_ms = await self._snapshot()
        left_ms = (deadline - asyncio.get_running_loop().time()) * 1000
        found = []
        for place in places:
            is_later = not place.is_running and place.due_ms > now_ms
            if is_later and scheduled:
                # XX: the job may have been claimed, or have ended, after the snapshot.
                queue = self._keys.queue(place.priority)
                await self._client.zadd(queue, {place.id: now_ms}, xx=True)
                await self._client.zadd(self._keys.wake, {"w": 0})
            elif is_later and place.due_ms > now_ms + left_ms:
                continue
            found.append(place)
        return found

    async def _snapshot(self) -> tuple[list[_Place], int]:
        """The places of all jobs, and the server's time in Unix ms."""
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.zrange(f"{self._keys.queue()}:running", 0, -1)
            for priority in Priority:
                pipe.zrange(self._keys.queue(priority), 0, -1, withscores=True)
            (seconds, micros), running, *queues = await pipe.execute()
        places = [
            _Place(id_.decode(), priority, due_ms, id_ in running)
            for priority, queue in zip(Priority, queues, strict=True)
            for id_, due_ms in queue
        ]
        return places, seconds * 1000 + micros // 1000

    async def _read(self, place: _Place) -> EnqueuedJob | None:
        data = await self._client.get(self._keys.job(place.id))
        if data is None:
            return None
        body = codec.decode(data)
        due_at = datetime.fromtimestamp(place.due_ms / 1000, UTC)
        args = tuple(body["a"])
        return EnqueuedJob(place.id, body["f"], args, body["k"], place.priority, due_at)

    async def _describe(self, place: _Place) -> str:
        job = await self._read(place)
        return f"{job.name if job else place.id} ({'runs' if place.is_running else 'waits'})"


def _add(counts: DrainCounts, worker: Worker) -> DrainCounts:
    return DrainCounts(
        counts.completed + worker.jobs_complete,
        counts.retried + worker.jobs_retried,
        counts.failed + worker.jobs_failed,
    )


def _call_text(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    given = [repr(arg) for arg in args] + [f"{key}={value!r}" for key, value in kwargs.items()]
    return f"{name}({', '.join(given)})"
