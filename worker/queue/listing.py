"""
Lists the jobs that wait, run or are parked, page by page.

A page costs the server a few short commands, however long the queue is. A cursor names
the last job that was read, so jobs that come, run or end between two pages do not make
another job appear twice or be left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from worker.errors import InvalidArgument, NotFound
from worker.keys import HELD_MS, EngineKeys, QueueKeys
from worker.queue.arguments import require_name
from worker.queue.filters import JobFilter
from worker.queue.job import reach
from worker.queue.pauses import Paused, Pauses
from worker.queue.places import cursor_of, rank_behind, read_cursor
from worker.queue.priority import Priority
from worker.queue.rows import (
    JobCall,
    JobRow,
    JobState,
    Place,
    claimed_place,
    job_call,
    job_row,
)

MOST_ROWS = 1000
# Jobs looked at for one page: a filter that few jobs match gives short pages, not long calls.
_MOST_LOOKS = 10_000
_STEP = 200
# Most bodies in memory at a time, because they may be large.
_BODIES = 20


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, of so many `looked` at. `cursor` gives the next page; "" after the last one."""

    jobs: list[JobRow]
    cursor: str
    looked: int = 0


class JobListing:
    """Reads jobs through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys
        self._engine = EngineKeys(keys)
        self._pauses = Pauses(client, keys)

    async def page(
        self,
        state: JobState | str | None,
        wanted: JobFilter,
        *,
        limit: int,
        cursor: str,
        looks: int = _MOST_LOOKS,
    ) -> JobPage:
        """As `Jobs.search`."""
        _check(state, limit)
        wanted.check()
        only = wanted.priority
        after = read_cursor(cursor)
        paused = await self._pauses.names()
        steps = (
            self._running(after)
            if state == JobState.RUNNING
            else self._waiting(after, state, only, any_paused=bool(paused))
        )
        found: list[JobRow] = []
        looked = 0
        now = datetime.now(UTC)
        async for places in steps:
            rows = await self._rows(places, paused)
            for place, row in zip(places, rows, strict=True):
                looked += 1
                if row is not None and _is_wanted(row, state, wanted, now):
                    found.append(row)
                if len(found) == limit:
                    return JobPage(found, cursor_of(place), looked)
            if looked >= looks:
                return JobPage(found, cursor_of(places[-1]), looked)
        return JobPage(found, "", looked)

    async def get(self, job_id: str) -> JobRow:
        """
        Raises:
            NotFound: no job of this id waits or runs.
        """
        require_name("job_id", job_id)
        async with self._client.pipeline(transaction=True) as pipe:
            for each in Priority:
                pipe.zscore(self._keys.queue(each), job_id)
            scores = await reach(pipe.execute())
        for number, score in enumerate(scores):
            if score is not None:
                place = Place(number, score, job_id.encode())
                (row,) = await self._rows([place], await self._pauses.names())
                if row is not None:
                    return row
        raise NotFound(f"no job {job_id!r} waits or runs")

    async def call(self, job_id: str) -> JobCall:
        """As `Jobs.arguments`."""
        require_name("job_id", job_id)
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.get(self._keys.job(job_id))
            pipe.hget(self._keys.dead_job(job_id), "body")
            pipe.get(self._keys.dead_body(job_id))  # a large one
            # A key of a foreign type is an error in its place: that job cannot be read.
            found = await reach(pipe.execute(raise_on_error=False))
        for body in found:
            if isinstance(body, bytes) and (call := job_call(body)) is not None:
                return call
        raise NotFound(f"no arguments of a job {job_id!r} are kept")

    async def _waiting(
        self, after: Place | None, state: str | None, only: Priority | None, *, any_paused: bool
    ) -> AsyncIterator[list[Place]]:
        """The places of the queues behind `after`, in steps; running jobs are among them."""
        now_ms = await self._now_ms()
        for number, priority in enumerate(Priority):
            if only not in (None, priority) or (after is not None and number < after.queue):
                continue
            key = self._keys.queue(priority)
            last = after if after is not None and after.queue == number else None
            if last is None and state == JobState.DEFERRED:
                last = Place(number, now_ms, b"")
            elif last is None and state == JobState.PAUSED and not any_paused:
                last = Place(number, HELD_MS, b"")
            while True:
                rank = 0 if last is None else await rank_behind(self._client, key, last)
                rows = await reach(
                    self._client.zrange(key, rank, rank + _STEP - 1, withscores=True)
                )
                if not rows or (state == JobState.QUEUED and rows[0][1] > now_ms):
                    break
                if state == JobState.DEFERRED and rows[0][1] >= HELD_MS:
                    break
                if state == JobState.PAUSED and now_ms < rows[0][1] < HELD_MS:
                    last = Place(number, HELD_MS, b"")
                    continue
                places = [Place(number, score, id_) for id_, score in rows]
                yield places
                last = places[-1]

    async def _running(self, after: Place | None) -> AsyncIterator[list[Place]]:
        """The places of running jobs in the order of their ids: as many as the fleet can run."""
        ids = sorted(await reach(self._client.zrange(self._engine.running, 0, -1)))
        left = [id_ for id_ in ids if after is None or id_ > after.id]
        for at in range(0, len(left), _STEP):
            step = left[at : at + _STEP]
            claims = await reach(self._client.mget([self._claim_key(id_) for id_ in step]))
            yield [claimed_place(id_, claim) for id_, claim in zip(step, claims, strict=True)]

    def _claim_key(self, job_id: bytes) -> bytes:
        return self._keys.in_progress("").encode() + job_id

    async def _now_ms(self) -> int:
        seconds, micros = await reach(self._client.time())
        return int(seconds * 1000 + micros // 1000)

    async def _rows(self, places: Sequence[Place], paused: Paused) -> list[JobRow | None]:
        """Read the jobs at these places; None for one that has just ended."""
        if not places:
            return []
        ids = [place.id for place in places]
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.zmscore(self._engine.running, ids)
            pipe.hmget(self._keys.parked, ids)
            (seconds, micros), running, parked = await reach(pipe.execute())
        now_ms = seconds * 1000 + micros // 1000
        rows: list[JobRow | None] = []
        for at in range(0, len(places), _BODIES):
            part = slice(at, at + _BODIES)
            bodies = await self._bodies(ids[part])
            rows += [
                job_row(
                    *(place, body, claim, tries, now_ms),
                    is_running=runs is not None,
                    since=since,
                    paused=paused,
                )
                for place, runs, since, (body, claim, tries) in zip(
                    places[part], running[part], parked[part], bodies, strict=True
                )
            ]
        return rows

    async def _bodies(self, ids: Sequence[bytes]) -> list[tuple[Any, Any, Any]]:
        """Body, claim and charged tries of each job."""
        names = [
            make("").encode() for make in (self._keys.job, self._keys.in_progress, self._keys.retry)
        ]
        async with self._client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                for name in names:
                    pipe.get(name + id_)
            # A key of a foreign type is an error in its place: that job cannot be read.
            found = await reach(pipe.execute(raise_on_error=False))
        values = [None if isinstance(value, Exception) else value for value in found]
        return list(zip(values[::3], values[1::3], values[2::3], strict=True))


def _is_wanted(row: JobRow, state: str | None, wanted: JobFilter, now: datetime) -> bool:
    return state in (None, row.state) and wanted.accepts(
        now,
        job_id=row.id,
        function=row.function,
        priority=row.priority,
        tries=row.tries,
        since=row.enqueued_at,
        error=None,
    )


def _check(state: str | None, limit: Any) -> None:
    if state is not None and state not in list(JobState):
        accepted = ", ".join(JobState)
        raise InvalidArgument(f"state {state!r} is not one; accepted: {accepted}")
    if type(limit) is not int or not 1 <= limit <= MOST_ROWS:
        raise InvalidArgument(f"limit must be 1 to {MOST_ROWS:,}, not {limit!r}")
