"""
Enqueues jobs for a service (one, many, gathered, repeating), returns handles and statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from worker import tracing
from worker.errors import InvalidArgument, NotFound, PayloadTooLarge
from worker.queue import arguments
from worker.queue.admission import MemoryGuard
from worker.queue.audit import AuditTrail
from worker.queue.calls import Call, JobName, T, Unique, name_of
from worker.queue.confirmation import Confirmations
from worker.queue.encoder import JobEncoder, new_id
from worker.queue.filters import JobFilter
from worker.queue.history import History
from worker.queue.job import Job, reach
from worker.queue.listing import Fleet, JobListing, JobPage
from worker.queue.overview import Overview, read_overview
from worker.queue.pauses import Pauses
from worker.queue.priority import Priority
from worker.queue.rhythm import require_rhythm
from worker.queue.rows import JobCall, JobRow, JobState, WorkerRow
from worker.queue.schedules import Schedule, ScheduleState, ScheduleStore
from worker.queue.server import ServerState, read_server
from worker.queue.staging import steps
from worker.queue.store import QueueStore
from worker.queue.switches import Switches

# Jobs of one script call. More would block the server's other clients.
_CHUNK = 500
# One call stores all gathered jobs, so that the gathering exists before any of them ends.
_MOST_PARTS = 1000
# Ids of one call: a script takes a few milliseconds for more.
_MOST_IDS = 200
# Scripts carry a repeating job at each run.
_MOST_SCHEDULE_BYTES = 1_048_576


class Jobs:
    """
    `queue.jobs`. Its `history` reads how jobs ended, its `pauses` hold jobs back, its `switches` stop
    schedules and crons, its `audit` tells what operators changed.

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
        self._store = store
        self._schedules = schedules
        self._encoder = encoder
        self._memory = memory
        self._confirmations = confirmations
        self._keys = store.keys
        self._listing = JobListing(store.client, store.keys)
        self.history = History(store.client, store.keys)
        self.pauses = Pauses(store.client, store.keys)
        self.switches = Switches(store.client, store.keys)
        self.audit = AuditTrail(store.client, store.keys)
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
        lock = _as_unique(unique)
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
                window_ms=_window_ms(lock),
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

    async def unschedule(self, schedule_id: str) -> bool:
        """Remove a repeating job; queued runs stay. Returns False when there is none."""
        arguments.require_name("schedule_id", schedule_id)
        return await reach(self._schedules.remove(schedule_id))

    async def schedules(self) -> list[Schedule]:
        """All repeating jobs."""
        return await reach(self._schedules.list())

    async def schedule_states(self) -> Sequence[ScheduleState]:
        """All repeating jobs, each with its next and its last run."""
        return await reach(self._schedules.states())

    async def run_schedule(self, schedule_id: str) -> Job[Any]:
        """
        Enqueue a repeating job once, now; its next run stays when it is.

        Raises:
            NotFound: no such schedule. Otherwise as `enqueue`.
        """
        arguments.require_name("schedule_id", schedule_id)
        for each in await self.schedules():
            if each.id == schedule_id:
                return await self.add(each.job)
        raise NotFound(f"no schedule {schedule_id!r}")

    async def aclose(self) -> None:
        """Stop waiting for replicas; the owner of the Redis client closes it."""
        await self._confirmations.aclose()

    # -- reading -----------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """A handle on an existing job of any client; does not contact the server."""
        arguments.require_name("job_id", job_id)
        return Job(job_id, self._store)

    async def list(
        self,
        state: JobState | str | None = None,
        *,
        function: str | None = None,
        priority: Priority | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> JobPage:
        """
        List jobs that have not ended, by priority and due time; their arguments are left out.

        The filters combine. `JobPage.cursor` gives the next page: pass it with the same filters.
        A page has at most `limit` jobs, and fewer where few of the 10,000 that it looked at match.
        Dead letters are in `queue.dead`.

        Raises:
            InvalidArgument: no such state, a limit outside 1 to 1,000, or a foreign cursor.
        """
        wanted = JobFilter(function=function, priority=priority)
        return await self.search(state, wanted, limit=limit, cursor=cursor)

    async def search(
        self,
        state: JobState | str | None,
        wanted: JobFilter,
        *,
        limit: int = 100,
        cursor: str = "",
        looks: int = 10_000,
    ) -> JobPage:
        """
        As `list`, by all parts of a filter but `error` and `arguments`; it looks at about `looks` jobs.

        Raises:
            InvalidArgument: as `list`, or a part of the filter is not valid.
        """
        return await self._listing.page(state, wanted, limit=limit, cursor=cursor, looks=looks)

    async def run_now(self, *job_ids: str) -> int:
        """
        Make deferred jobs due now; returns how many were deferred. Retries are deferred jobs, too.

        Raises:
            InvalidArgument: no id, or more than 200.
        """
        _require_ids(job_ids)
        return await reach(self._store.run_now(job_ids))

    async def request_aborts(self, job_ids: Sequence[str]) -> int:
        """
        Request the abort of jobs and wait for no end; returns how many are newly requested.

        Raises:
            InvalidArgument: no id, or more than 200.
        """
        _require_ids(job_ids)
        return await reach(self._store.abort_each(job_ids))

    async def describe(self, job_id: str) -> JobRow:
        """
        One job that has not ended, without its arguments.

        Raises:
            NotFound: no job of this id waits or runs.
        """
        return await self._listing.get(job_id)

    async def arguments(self, job_id: str) -> JobCall:
        """
        The function and arguments of a job that has not ended, or of a dead letter.

        They may hold secrets: show them only to people who may see those.

        Raises:
            NotFound: no such job or dead letter; or its body cannot be read.
        """
        return await self._listing.call(job_id)

    async def workers(self) -> Sequence[WorkerRow]:
        """The live workers, by host and process."""
        return (await self.fleet()).workers

    async def fleet(self) -> Fleet:
        """The live workers, and those that have lapsed."""
        return await self._listing.fleet()

    async def server(self) -> ServerState:
        """Memory, evictions and replication of the queue's server."""
        return await read_server(self._store.client)

    async def overview(self) -> Overview:
        """Count jobs, deliveries and batches in a few short commands, however many there are."""
        return await read_overview(self._store.client, self._keys)

    async def stats(self) -> dict[str, dict[str, float]]:
        """
        Per priority: queued, deferred, running, paused, parked, dead (jobs) and oldest_age_s.

        A paused job is due, but its function or priority is paused. A parked job waits for a
        worker that has its function; it is queued, deferred or paused as well.
        """
        counts = await reach(self._store.counts())
        return {
            priority.value: {
                "queued": row.queued,
                "deferred": row.deferred,
                "running": row.running,
                "paused": row.paused,
                "parked": row.parked,
                "dead": row.dead,
                "oldest_age_s": row.oldest_age_s,
            }
            for priority, row in counts.items()
        }

    # -- inside ------------------------------------------------------------------

    def _row(
        self, call: Call, more: Mapping[str, Any] | None = None
    ) -> tuple[str, Priority, int, bytes]:
        priority = arguments.require_call("call", call)
        options = {**self._encoder.options(call.expires_s, call.then), **(more or {})}
        body = self._encoder.encode(call.name, call.args, call.kwargs, options=options)
        job_id = call.job_id or new_id()
        return job_id, priority, arguments.delay_ms(call.delay_s), body


def _require_ids(job_ids: Sequence[str]) -> None:
    if not 1 <= len(job_ids) <= _MOST_IDS:
        raise InvalidArgument(f"give 1 to {_MOST_IDS} ids, not {len(job_ids)}")
    for id_ in job_ids:
        arguments.require_name("job_ids", id_)


def _as_unique(unique: Unique | str | None) -> Unique | None:
    if unique is None:
        return None
    lock = unique if isinstance(unique, Unique) else Unique(unique)
    arguments.require_name("unique", lock.key, longest=256)
    if lock.scope not in ("queued", "running", "window"):
        raise InvalidArgument(f"{lock.scope!r} is not a scope; accepted: queued, running, window")
    if (lock.scope == "window") != (lock.window_s is not None):
        raise InvalidArgument("the scope window needs window_s; other scopes must not have it")
    return lock


def _window_ms(lock: Unique | None) -> int | None:
    if lock is None or lock.window_s is None:
        return None
    return max(1, arguments.delay_ms(lock.window_s))
