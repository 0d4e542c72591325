"""
Stores jobs in Redis, reads their status and results, and requests their abort.

The layout is that of stock arq, so that stock clients can read it: `job:<id>`
holds msgpack {t, f, a, k, et}, and the queue's sorted set holds the due time.
docs/keys.md lists all keys and their bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cache.connection.scripts import load
from cache.encoding import codec
from worker.errors import QueueFull
from worker.keys import EngineKeys, QueueKeys
from worker.queue.priority import Priority
from worker.queue.staging import LARGE, Staged, large_ones, staged

_ENQUEUE = load(__package__, "enqueue")
_ENQUEUE_MANY = load(__package__, "enqueue_many")
_ABORT = load(__package__, "abort")
_RUN_NOW = load(__package__, "run_now")
_STATS = load(__package__, "stats")
# Running, dead and parked jobs that one call of stats.lua counts: it occupies the server for about 1 ms.
_STATS_PAGE = 250
_NUMBER = {priority: number for number, priority in enumerate(Priority, 1)}
# A gathering whose jobs never all succeed expires after a week.
GATHER_TTL_MS = 604_800_000


class JobStatus(StrEnum):
    """The status of a job. The values are those of arq."""

    DEFERRED = "deferred"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended. `value` is its result, or the exception that ended it."""

    success: bool
    value: Any
    tries: int


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """
    The counts of one priority. `oldest_age_s` is how long its oldest due job has waited.

    Paused jobs are due, but their function or priority is paused. Parked jobs wait for a worker
    that has their function; they are queued, deferred or paused as well.
    """

    queued: int
    deferred: int
    running: int
    oldest_age_s: float
    dead: int
    parked: int
    paused: int


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """Whether the job is new. If not, `holder` is the id of the job with its unique key."""

    is_new: bool
    holder: str | None


def job_body(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    now_ms: int,
    try_: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> bytes:
    """
    Encode a job in arq's format.

    Raises:
        cache.errors.NotEncodable: an argument would not arrive as it was given.
    """
    fields: dict[str, Any] = {
        # Stock clients write it last: that it is first tells our bodies from others (lua/_body.lua).
        "et": now_ms,
        "t": try_,
        "f": name,
        "a": list(args),
        "k": dict(kwargs),
    }
    if options:
        # Stock arq ignores this field. See worker/queue/client.py.
        fields["o"] = options
    return codec.encode_exact(fields)


def _split_around(
    gather: Mapping[str, Any],
) -> tuple[Mapping[str, Any], list[dict[str, bytes]]]:
    """The fields of a gathering that its script carries, and those that are sent before: none or one."""
    around = {name: gather[name] for name in ("head", "tail") if name in gather}
    if sum(map(len, around.values())) <= LARGE:
        return gather, []
    return {name: value for name, value in gather.items() if name not in around}, [around]


class QueueStore:
    """Reads and writes the queue through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self.client = client
        self.keys = keys

    @property
    def queues(self) -> list[str]:
        """Queue keys in the order of their numbers, from 1: critical, high, default, low."""
        return [self.keys.queue(priority) for priority in Priority]

    async def put(
        self,
        job_id: str,
        body: bytes,
        *,
        priority: Priority,
        delay_ms: int,
        due_ms: int | None,
        most: int = 0,
        unique: str | None = None,
        window_ms: int | None = None,
    ) -> EnqueueResult:
        """
        Store a job, unless one with this id exists or another job holds the key `unique`.

        Raises:
            QueueFull: `most` jobs already wait (0: no limit).
        """
        keys = [*self.keys.job_keys(job_id, priority), *self.queues]
        args: list[Any] = [job_id, body, delay_ms, "" if due_ms is None else due_ms, most]
        args += ["" if unique is None else (window_ms or 0), self.keys.job("")]
        if unique is not None:
            keys.append(unique)
        if len(body) > LARGE:
            async with staged(self.client, self.keys, [body]) as names:
                args[1:2] = [""]
                code, *holder = await _ENQUEUE.run(self.client, keys, [*args, *names])
        else:
            code, *holder = await _ENQUEUE.run(self.client, keys, args)
        if code == -1:
            raise QueueFull(most)
        return EnqueueResult(code == 1, holder[0].decode() if holder else None)

    async def put_many(
        self,
        rows: Sequence[tuple[str, Priority, int, bytes]],
        *,
        most: int = 0,
        gather: Mapping[str, Any] | None = None,
    ) -> int:
        """
        Store the jobs `(id, priority, delay_ms, body)`, all or none. Return how many are new.

        `gather`: fields of the gathering that they belong to. Its id is that of the job that
        follows it. While a gathering of this id is open, nothing is stored.

        Raises:
            QueueFull: more than `most` jobs would wait (0: no limit).
        """
        fields, around = _split_around(gather or {})
        following = str(fields.get("job", "-"))
        keys = [self.keys.wake, *self.queues]
        keys += [self.keys.gather(following), self.keys.result(following)]
        flat = [part for pair in fields.items() for part in pair]
        args: list[Any] = [self.keys.prefix, most, GATHER_TTL_MS, len(fields), *flat]
        first = len(args)
        for job_id, priority, delay_ms, body in rows:
            args += (job_id, _NUMBER[priority], delay_ms, body)
        large = large_ones([row[3] for row in rows])
        bodies: list[Staged] = [*(rows[number][3] for number in large), *around]
        async with staged(self.client, self.keys, bodies) as names:
            for number, name in zip(large, names, strict=False):
                at = first + 4 * number
                args[at + 1], args[at + 3] = -args[at + 1], name
            keys += names[len(large) :]
            new = await _ENQUEUE_MANY.run(self.client, keys, args)
        if new == -1:
            raise QueueFull(most)
        return int(new)

    async def status(self, job_id: str) -> JobStatus:
        keys = self.keys
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.exists(keys.result(job_id))
            pipe.exists(keys.in_progress(job_id))
            pipe.exists(keys.gather(job_id))
            pipe.time()
            for priority in Priority:
                pipe.zscore(keys.queue(priority), job_id)
            done, running, gathering, (seconds, micros), *scores = await pipe.execute()
        due = next((score for score in scores if score is not None), None)
        if done:
            return JobStatus.COMPLETE
        if running:
            return JobStatus.IN_PROGRESS
        if due is None:
            return JobStatus.DEFERRED if gathering else JobStatus.NOT_FOUND
        return JobStatus.DEFERRED if due > seconds * 1000 + micros // 1000 else JobStatus.QUEUED

    async def result(self, job_id: str) -> JobResult | None:
        """
        Return how the job ended, or None if it has not or its result is no longer kept.

        Raises:
            cache.errors.CodecError: the stored bytes are not a result.
        """
        data = await self.client.get(self.keys.result(job_id))
        if data is None:
            return None
        fields = codec.decode(data)
        return JobResult(bool(fields["s"]), fields["r"], int(fields["t"] or 1))

    async def abort(self, job_id: str) -> bool:
        """Request a job's abort. Return False if no such job waits or runs."""
        return bool(await _ABORT.run(self.client, *self._abort(job_id)))

    async def abort_each(self, job_ids: Sequence[str]) -> int:
        """Request the abort of these jobs. Return how many were there and not requested before."""
        marks = await self.client.zmscore(self.keys.abort, list(job_ids))
        left = [id_ for id_, mark in zip(job_ids, marks, strict=True) if mark is None]
        if not left:
            return 0
        # The first call also teaches the script to a server that does not know it.
        done = int(await self.abort(left[0]))
        async with self.client.pipeline(transaction=False) as pipe:
            for id_ in left[1:]:
                pipe.execute_command(*_ABORT.command(*self._abort(id_)))
            replies = await pipe.execute()
        return done + sum(map(int, replies))

    async def run_now(self, job_ids: Sequence[str]) -> int:
        """Make at most 200 deferred jobs due now. Return how many were deferred."""
        keys = [*self.queues, EngineKeys(self.keys).running, self.keys.wake]
        args = [self.keys.prefix, *dict.fromkeys(job_ids)]
        return int(await _RUN_NOW.run(self.client, keys, args))

    def _abort(self, job_id: str) -> tuple[list[str], list[str]]:
        keys = self.keys
        names = [keys.abort, keys.job(job_id), keys.in_progress(job_id), keys.wake]
        return [*names, *self.queues], [job_id]

    async def counts(self) -> dict[Priority, QueueCounts]:
        """
        Return the counts of each priority. Running and parked jobs are counted by pages, and so are
        dead ones while some of an earlier release are left.
        """
        engine = EngineKeys(self.keys)
        keys = [*self.queues, engine.running, self.keys.dead, self.keys.parked, engine.paused]
        keys.append(self.keys.dead_queues)
        sums = [[0, 0, 0] for _ in Priority]  # running, dead, parked
        rows: list[list[int]] = []
        at, more, cursor, whole = 0, 1, b"0", ""
        while more or cursor:
            args = [self.keys.prefix, at, _STATS_PAGE, cursor, whole]
            more, rows, cursor, whole = await _STATS.run(self.client, keys, args)
            for total, row in zip(sums, rows, strict=True):
                total[:] = [count + found for count, found in zip(total, row[4:], strict=True)]
            at += _STATS_PAGE
        return {
            # A running job is in its queue as well.
            priority: QueueCounts(
                queued=row[0],
                deferred=max(0, row[1] - runs),
                running=runs,
                oldest_age_s=max(0.0, row[2] / 1000),
                dead=died,
                parked=parked,
                paused=row[3],
            )
            for priority, row, (runs, died, parked) in zip(Priority, rows, sums, strict=True)
        }
