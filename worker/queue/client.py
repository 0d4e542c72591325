"""Enqueues jobs for a service (one, many, gathered, repeating), and returns their handles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from worker import tracing
from worker.errors import InvalidArgument, NotFound, PayloadTooLarge
from worker.queue import arguments
from worker.queue.admission import MemoryGuard
from worker.queue.calls import Call, JobName, T, Unique, name_of
from worker.queue.confirmation import Confirmations
from worker.queue.encoder import JobEncoder, new_id
from worker.queue.job import Job, reach
from worker.queue.operations import JobOperations
from worker.queue.priority import Priority
from worker.queue.rhythm import require_rhythm
from worker.queue.schedules import Schedule, ScheduleStore
from worker.queue.staging import steps
from worker.queue.store import QueueStore

# Jobs of one script call. More would block the server's other clients.
_CHUNK = 500
# One call stores all gathered jobs, so that the gathering exists before any of them ends.
_MOST_PARTS = 1000
# Scripts carry a repeating job at each run.
_MOST_SCHEDULE_BYTES = 1_048_576


class Jobs(JobOperations):
    """
    `queue.jobs`.

    Every method raises:
        QueueUnavailable: the server cannot be reached; nothing is known to be stored.
    """

    def __init__(
        self,
        store: QueueStore,
        schedules: ScheduleStore,
        encoder: JobEncoder,
        memory: MemoryGuard,
        confirmations: Confirmations,
        *,
        max_length: int,
    ) -> None:
        super().__init__(store, schedules)
        self._encoder = encoder
        self._memory = memory
        self._confirmations = confirmations
        self._max_length = max_length

    async def enqueue(
        self,
        name: JobName[T],
        *args: Any,
        priority: Priority = Priority.DEFAULT,
        job_id: str | None = None,
        delay_s: float = 0,
        at: datetime | None = None,
        unique: Unique | str | None = None,
        expires_s: float | None = None,
        then: Call | None = None,
        wait_replicas: int | None = None,
        **kwargs: Any,
    ) -> Job[T]:
        """
        Store a job that calls the worker's function `name` with these arguments.

        Given the function itself, a type checker knows the type of the job's result. Its name is
        `__qualname__`, as where it was registered without another name.

        `delay_s` or `at` (an aware datetime) delays it. If a job with the same
        `job_id` waits or runs, nothing is stored and `Job.is_new` is False; a
        stored result of an earlier job does not count. `unique` (a key, or
        `Unique`) stores nothing while another job holds the key, and the handle is
        that job's. A job that has not started `expires_s` after now becomes a dead
        letter. When the job succeeds, `then` is enqueued in the same step, with the
        result as its first argument. `wait_replicas`, instead of
        LETTA_QUEUE_WAIT_REPLICAS: wait until so many replicas have the job, and say
        so in `Job.confirmed`.

        Raises:
            InvalidArgument: bad name, id, delay, time, key or number of replicas.
            NotSerializable: an argument would not arrive as given; names it and the remedy.
            PayloadTooLarge: over LETTA_QUEUE_MAX_JOB_BYTES.
            QueueFull, QueueMemoryFull: a limit is reached; nothing was stored.
            NotConfirmed: stored, but replicas are missing, and LETTA_QUEUE_WAIT_REQUIRED is set.
        """
        if job_id is not None:
            arguments.require_job_id("job_id", job_id)
        priority = arguments.require_priority(priority)
        if at is not None and delay_s:
            raise InvalidArgument("give delay_s or at, not both")
        options = self._encoder.options(expires_s, then)
        lock = arguments.require_unique(unique)
        # A window's key expires; the job's end deletes the other keys.
        if lock is not None and lock.scope != "window":
            options |= {"u": lock.key, "us": lock.scope}
        chosen = job_id or new_id()
        function = name_of(name)
        arguments.require_job_name(function)
        with tracing.sending(priority.value, chosen):
            body = self._encoder.encode(function, args, kwargs, options=options)
            await self._memory.admit()
            put = partial(
                self._store.put,
                chosen,
                body,
                priority=priority,
                delay_ms=arguments.delay_ms(delay_s),
                due_ms=None if at is None else arguments.unix_ms("at", at),
                most=self._max_length,
                unique=None if lock is None else self._keys.unique(lock.key),
                window_ms=arguments.window_ms(lock),
            )
            stored, confirmed = await self._confirmations.of(lambda: reach(put()), wait_replicas)
        # Without the caller's id, an existing job can only come from this call, sent
        # again after its reply was lost.
        is_new = stored.holder is None and (stored.is_new or job_id is None)
        found = stored.holder or chosen
        self._confirmations.require(confirmed, found)
        return Job(found, self._store, is_new=is_new, confirmed=confirmed)

    async def enqueue_many(
        self, calls: Iterable[Call[T]], *, wait_replicas: int | None = None
    ) -> list[Job[T]]:
        """
        Store many jobs in atomic steps; returns handles in the order of the calls.

        A step has at most 500 jobs, and about 512 KiB besides jobs over 256 KiB.

        Calls whose `job_id` waits or runs already store nothing.

        Raises:
            As `enqueue`. Every call is checked before the first is stored. When a
            limit is reached, jobs of earlier steps stay stored.
        """
        calls = list(calls)

        async def store() -> None:
            for start, stop in steps([len(row[3]) for row in rows], _CHUNK):
                await self._memory.admit()
                await reach(self._store.put_many(rows[start:stop], most=self._max_length))

        with tracing.sending_many(len(calls)):
            rows = [self._row(call) for call in calls]
            _, confirmed = await self._confirmations.of(store, wait_replicas)
        self._confirmations.require(confirmed, *(row[0] for row in rows))
        return [Job(row[0], self._store, confirmed=confirmed) for row in rows]

    async def add(self, each: Call[T]) -> Job[T]:
        """
        Store one job that stands in a value, as `enqueue`. Its `kwargs` may have any name.

        Raises:
            As `enqueue`.
        """
        job_id, priority, delay_ms, body = self._row(each)
        await self._memory.admit()
        put = partial(
            self._store.put,
            *(job_id, body),
            priority=priority,
            delay_ms=delay_ms,
            due_ms=None,
            most=self._max_length,
        )
        stored, confirmed = await self._confirmations.of(lambda: reach(put()), None)
        self._confirmations.require(confirmed, job_id)
        is_new = stored.is_new or each.job_id is None
        return Job(job_id, self._store, is_new=is_new, confirmed=confirmed)

    async def gather(
        self, calls: Sequence[Call], *, then: Call[T], wait_replicas: int | None = None
    ) -> Job[T]:
        """
        Store jobs; when all have succeeded, enqueue `then` with the list of their results.

        Returns the handle of `then`, which is deferred until then. Results are in the order
        of the calls. If a job becomes a dead letter, `then` does not run unless the dead
        letter is retried within a week and succeeds. The same `then.job_id` again stores
        nothing while the first gathering is open.

        Raises:
            InvalidArgument: no call, or more than 1,000. Otherwise as `enqueue`.
        """
        if not 1 <= len(calls) <= _MOST_PARTS:
            raise InvalidArgument(f"gather takes 1 to {_MOST_PARTS} calls, not {len(calls)}")
        priority = arguments.require_call("then", then)
        job_id = then.job_id or new_id()
        rows = [
            self._row(call, {"g": {"id": job_id, "i": index}}) for index, call in enumerate(calls)
        ]
        head, tail = self._encoder.encode_around(then)
        fields = {"size": len(rows), "head": head, "tail": tail}
        fields |= {"queue": priority.value, "job": job_id}
        await self._memory.admit()
        _, confirmed = await self._confirmations.of(
            lambda: reach(self._store.put_many(rows, most=self._max_length, gather=fields)),
            wait_replicas,
        )
        self._confirmations.require(confirmed, job_id)
        return Job(job_id, self._store, confirmed=confirmed)

    # -- repeating jobs ----------------------------------------------------------

    async def schedule(
        self,
        schedule_id: str,
        job: Call,
        *,
        every_s: float | None = None,
        cron: str | None = None,
        wait_replicas: int | None = None,
    ) -> None:
        """
        Register a repeating job; each tick runs once, however many workers there are.

        The same id again replaces the schedule. `every_s` counts from now; `cron` has
        five fields, or six with seconds first, in UTC. Ticks that were missed while no
        worker ran are run once together.

        Raises:
            InvalidArgument: neither or both were given, or the value is not valid or never due.
            PayloadTooLarge: over 1 MiB, or LETTA_QUEUE_MAX_JOB_BYTES.
        """
        arguments.require_id("schedule_id", schedule_id)
        arguments.require_call("job", job)
        require_rhythm(every_s, cron)
        size = len(self._encoder.encode(job.name, job.args, job.kwargs))
        if size > _MOST_SCHEDULE_BYTES:
            what = f"schedule {schedule_id!r}"
            raise PayloadTooLarge(what, size, _MOST_SCHEDULE_BYTES, "fixed for repeating jobs")
        schedule = Schedule(schedule_id, job, every_s, cron)
        _, confirmed = await self._confirmations.of(
            lambda: reach(self._schedules.put(schedule)), wait_replicas
        )
        self._confirmations.require(confirmed, schedule_id)

    async def run_schedule(self, schedule_id: str) -> Job[Any]:
        """
        Enqueue a repeating job, or a cron by its name, once, now; its next run is unchanged.

        Raises:
            NotFound: no schedule has this id, and no worker has had a cron of this name. Otherwise
                as `enqueue`.
        """
        arguments.require_name("schedule_id", schedule_id)
        for each in await self.schedules():
            if each.id == schedule_id:
                return await self.add(each.job)
        function = await self.switches.function_of(schedule_id)
        if function is None:
            raise NotFound(f"no schedule or cron {schedule_id!r}")
        return await self.add(Call(function))

    def get(self, job_id: str) -> Job:
        """A handle on an existing job of any client; does not contact the server."""
        arguments.require_name("job_id", job_id)
        return Job(job_id, self._store)

    async def aclose(self) -> None:
        """Stop waiting for replicas; the owner of the Redis client closes it."""
        await self._confirmations.aclose()

    # -- inside ------------------------------------------------------------------

    def _row(
        self, call: Call, more: Mapping[str, Any] | None = None
    ) -> tuple[str, Priority, int, bytes]:
        priority = arguments.require_call("call", call)
        options = {**self._encoder.options(call.expires_s, call.then), **(more or {})}
        body = self._encoder.encode(call.name, call.args, call.kwargs, options=options)
        job_id = call.job_id or new_id()
        return job_id, priority, arguments.delay_ms(call.delay_s), body
