"""Stores the repeating jobs that clients register; worker/engine/cron.py runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cache.connection.scripts import load
from cache.encoding import codec
from cache.errors import CodecError
from cache.logs import get_logger
from worker.keys import EngineKeys, QueueKeys
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


class ScheduleStore:
    """Reads and writes schedules through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        engine = EngineKeys(keys)
        self._due, self._jobs = engine.schedules, engine.schedule_jobs
        self._runs = engine.schedule_runs
        self._wake = keys.wake

    async def put(self, schedule: Schedule, queue: str) -> None:
        job = schedule.job
        every_ms = None if schedule.every_s is None else round(schedule.every_s * 1000)
        row = {
            "f": job.name,
            "a": list(job.args),
            "k": dict(job.kwargs or {}),
            "q": queue,
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
        """All schedules that can be read; the worker logs the others as well, when they are due."""
        rows = await self._client.hgetall(self._jobs)
        found = []
        for id_, data in sorted(rows.items()):
            try:
                found.append(_schedule(id_.decode(errors="replace"), codec.decode(data)))
            except (CodecError, ArithmeticError, LookupError, TypeError, ValueError) as exc:
                name = id_.decode(errors="replace")
                log.error("schedule.bad", schedule=name, error=type(exc).__name__)  # noqa: TRY400
        return found


def _schedule(id_: str, row: dict[str, Any]) -> Schedule:
    job = Call(row["f"], tuple(row["a"]), row["k"], Priority(row["p"]))
    every_s = None if row["every"] is None else row["every"] / 1000
    return Schedule(id_, job, every_s, row["cron"])
