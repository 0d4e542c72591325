"""Stores the repeating jobs that clients register; worker/engine/cron.py runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cache.connection.scripts import load
from cache.encoding import codec
from cache.errors import CodecError
from cache.logs import get_logger
from worker.keys import HELD_MS, EngineKeys, QueueKeys
from worker.numbers import MOST_MS, moment, whole
from worker.queue.calls import Call
from worker.queue.priority import Priority

log = get_logger(__name__)

_PUT = load(__package__, "schedule")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A repeating job: every `every_s` seconds, or when the cron expression `cron` says (UTC)."""

    id: str
    job: Call
    every_s: float | None
    cron: str | None


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """
    When a schedule runs next, and the outcome of its last run.

    next_at: None until a worker has computed a new cron's first tick, and while it is off. last_at: the
    tick of the last run. last_job: that run's job, "" before the first. last_outcome: waits, runs,
    dead, or ended: it completed or was aborted. is_on: False while it is switched off.
    """

    schedule: Schedule
    next_at: datetime | None
    last_at: datetime | None
    last_job: str
    last_outcome: str
    is_on: bool = True


# Inside `ScheduleStore`, the name `list` means its method.
_States = list[ScheduleState]


class ScheduleStore:
    """Reads and writes schedules through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys
        engine = EngineKeys(keys)
        self._due, self._jobs = engine.schedules, engine.schedule_jobs
        self._runs = engine.schedule_runs
        self._wake = keys.wake

    async def put(self, schedule: Schedule) -> None:
        job = schedule.job
        every_ms = None if schedule.every_s is None else round(schedule.every_s * 1000)
        row = {
            "f": job.name,
            "a": list(job.args),
            "k": dict(job.kwargs or {}),
            "p": job.priority.value,
            "every": every_ms,
            "cron": schedule.cron,
        }
        keys = [self._due, self._jobs, self._wake]
        args = [schedule.id, codec.encode(row), every_ms or 0]
        await _PUT.run(self._client, keys, args)

    async def remove(self, schedule_id: str) -> bool:
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.zrem(self._due, schedule_id)
            pipe.hdel(self._jobs, schedule_id)
            pipe.hdel(self._runs, schedule_id)
            _, removed, _ = await pipe.execute()
        return bool(removed)

    async def list(self) -> list[Schedule]:
        """All readable schedules. Others are logged here, and by the worker when they are due."""
        rows = await self._client.hgetall(self._jobs)
        found = []
        for id_, data in sorted(rows.items()):
            try:
                found.append(_schedule(id_.decode(errors="replace"), codec.decode(data)))
            except (CodecError, ArithmeticError, LookupError, TypeError, ValueError) as exc:
                name = id_.decode(errors="replace")
                log.error("schedule.bad", schedule=name, error=type(exc).__name__)  # noqa: TRY400
        return found

    async def states(self) -> _States:
        """As `list`, with the runs of each."""
        found = await self.list()
        if not found:
            return []
        ids = [each.id for each in found]
        due = await self._client.zmscore(self._due, ids)
        last = await self._client.hmget(self._runs, ids)
        jobs = [(job or b"").decode(errors="replace") for job in last]
        outcomes = await outcomes_of(self._client, self._keys, jobs)
        return [
            ScheduleState(
                each,
                _time(whole(score)),
                _time(_tick_of(job)),
                job,
                outcome,
                is_on=score is None or score < HELD_MS,
            )
            for each, score, job, outcome in zip(found, due, jobs, outcomes, strict=True)
        ]


async def outcomes_of(client: Any, keys: QueueKeys, jobs: Sequence[str]) -> list[str]:
    """The outcomes of jobs: waits, runs, dead, or ended; "" for the id ""."""
    async with client.pipeline(transaction=False) as pipe:
        for job in jobs:
            for make in (keys.in_progress, keys.job, keys.dead_job):
                pipe.exists(make(job))
        flags = await pipe.execute() if jobs else []
    return [_outcome(job, *flags[3 * at : 3 * at + 3]) for at, job in enumerate(jobs)]


def _outcome(job: str, runs: int, waits: int, is_dead: int) -> str:
    if not job:
        return ""
    if runs:
        return "runs"
    if waits:
        return "waits"
    return "dead" if is_dead else "ended"


def _tick_of(job: str) -> int:
    """The tick in the id of a run's job, "<schedule>:<Unix ms>:~" (worker/engine/schedules.py)."""
    parts = job.rsplit(":", 2)
    return whole(parts[1], most=MOST_MS) if len(parts) == 3 else 0


def _time(ms: int) -> datetime | None:
    return moment(ms) if 0 < ms <= MOST_MS else None


def _schedule(id_: str, row: dict[str, Any]) -> Schedule:
    job = Call(row["f"], tuple(row["a"]), row["k"], Priority(row["p"]))
    every_s = None if row["every"] is None else row["every"] / 1000
    return Schedule(id_, job, every_s, row["cron"])
