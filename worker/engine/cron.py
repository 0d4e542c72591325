"""
Enqueues cron jobs and repeating jobs: each tick once, whatever the number of workers.

Every worker computes the ticks by the server's clock, and a script lets one of
them enqueue (lua/cron.lua). The server stores the last tick, so that a worker can
detect ticks missed while no worker was up: they run once, or are skipped.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from arq.cron import CronJob
from cronsim import CronSim
from redis.exceptions import ResponseError

from cache.connection.pool import OUTAGE
from cache.connection.scripts import load
from cache.encoding import codec
from cache.logs import get_logger
from worker.keys import EngineKeys
from worker.numbers import whole

log = get_logger(__name__)

_CRON = load(__package__, "cron", "..queue")
_SCHEDULE = load(__package__, "schedule_run", "..queue")
# The clock is read at least this often, because the server's clock may be set.
_MAX_WAIT_S = 10.0
_RETRY_S = 1.0
_MOST_SCHEDULES = 100
# Workers that start within this time count as one start.
_STARTUP_MS = 10_000
_BAD_SCHEDULE_MS = 3_600_000


class CronRunner:
    """Enqueues jobs whose tick is due. Times are Unix ms by the server's clock."""

    def __init__(
        self,
        client: Any,
        keys: EngineKeys,
        jobs: Sequence[CronJob],
        *,
        encode: Callable[[dict[str, Any]], bytes],
        missed: str,
        now_ms: Callable[[], int],
        timezone: tzinfo | None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._jobs = jobs
        self._encode = encode
        self._missed = missed
        self._now_ms = now_ms
        self._timezone = timezone
        self._next: dict[int, int] = {}  # by the job's place: names repeat
        self._busy = False

    async def run(self) -> None:
        """Enqueue each tick when it is due, until canceled."""
        while self._jobs:
            try:
                wait_s = await self.tick()
            except OUTAGE:
                wait_s = _RETRY_S  # the poll logs the outage
            await asyncio.sleep(wait_s)

    async def tick(self) -> float:
        """Enqueue what is due; return the seconds until the next tick, at most 10."""
        for place, job in enumerate(self._jobs):
            if place not in self._next:
                self._next[place] = await self._begin(job)
            due = self._next[place]
            if due <= self._now_ms():
                await self._fire(job, due)
                self._next[place] = max(self.after(job, due), self.after(job, self._now_ms()))
        waits = [(due - self._now_ms()) / 1000 for due in self._next.values()]
        return max(0.001, min([_MAX_WAIT_S, *waits]))

    def after(self, job: CronJob, moment_ms: int) -> int:
        """Return the job's first tick after `moment_ms`."""
        job.calculate_next(datetime.fromtimestamp(moment_ms / 1000, tz=self._timezone or UTC))
        assert job.next_run is not None  # noqa: S101
        return round(job.next_run.timestamp() * 1000)

    async def _begin(self, job: CronJob) -> int:
        """Run what is due at the start; return the first tick after now."""
        now = self._now_ms()
        if job.run_at_startup:
            await self._fire(job, now - now % _STARTUP_MS, name=f"startup:{_name(job)}")
        await self._client.hsetnx(self._keys.cron, _name(job), now)
        seen = await self._client.hget(self._keys.cron, _name(job))
        last = whole(seen, fallback=now)
        missed = self.after(job, last)
        # A missed tick lies in the future when the server's clock was set back: nothing to catch up.
        if missed <= now and job.unique:
            if self._missed == "once":
                log.info("cron.catching_up", task=job.name, tick_ms=missed)
                await self._fire(job, missed, seen=seen, last=now)
            else:
                await self._client.hset(self._keys.cron, _name(job), now)
        return self.after(job, now)

    async def _fire(
        self,
        job: CronJob,
        tick: int,
        *,
        name: str | None = None,
        seen: bytes = b"",
        last: int | None = None,
    ) -> None:
        unique_id = f"{name or _name(job)}:{tick}" if job.unique else uuid.uuid4().hex
        job_id = job.job_id or unique_id
        body: dict[str, Any] = {"t": None, "f": job.name, "a": [], "k": {}, "et": self._now_ms()}
        args = [name or _name(job), tick, job_id, self._encode(body), int(job.unique)]
        args += [seen, tick if last is None else last]
        if await _CRON.run(self._client, [self._keys.cron, *self._job_keys(job_id)], args):
            log.info("cron.enqueued", task=job.name, job_id=job_id)

    def _job_keys(self, job_id: str, queue: str | None = None) -> list[str]:
        base = self._keys.base
        queue = queue or self._keys.default_queue
        return [queue, base.job(job_id), base.result(job_id), self._keys.wake]

    # -- repeating jobs, registered by clients -----------------------------------

    async def run_schedules(self) -> None:
        """Enqueue every repeating job that is due and set its next run."""
        if self._busy:
            return
        self._busy = True
        try:
            due = await self._client.zrange(
                self._keys.schedules,
                *("-inf", self._now_ms()),
                byscore=True,
                offset=0,
                num=_MOST_SCHEDULES,
                withscores=True,
            )
            for id_, score in due:
                await self._run_schedule(id_, score)
        except OUTAGE:
            return  # they stay due: the next poll starts this again
        finally:
            self._busy = False

    async def _run_schedule(self, id_: bytes, score: float) -> None:
        data = await self._client.hget(self._keys.schedule_jobs, id_)
        if data is None:
            await self._client.zrem(self._keys.schedules, id_)
            return
        try:
            due = int(score)
            if not 0 <= due == score:
                raise ValueError(f"{score} is not a time in ms")
            row = codec.decode(data)
            # One look at the clock: a short interval may pass between two.
            now = self._now_ms()
            next_due = next_run_ms(row, due, now)
            if next_due <= now:
                raise ValueError("its next run is not in the future")
            # Callers' ids may not contain a tilde, so none collides with a run's id.
            queue, job_id = _queue_of(row), f"{id_.decode()}:{due}:~"
            body = self._encode(
                {"t": None, "f": row["f"], "a": row["a"], "k": row["k"], "et": self._now_ms()}
            )
        except Exception as exc:  # noqa: BLE001  (one bad schedule must not stop the others)
            await self._postpone(id_, exc)
            return
        if due == 0:
            # A new cron schedule: its first tick is still to come.
            await self._client.zadd(self._keys.schedules, {id_: next_due}, xx=True)
            return
        keys = [self._keys.schedules, *self._job_keys(job_id, queue)]
        try:
            await _SCHEDULE.run(self._client, keys, [id_, due, next_due, job_id, body])
        except ResponseError as exc:
            if "WRONGTYPE" not in str(exc):
                raise
            await self._postpone(id_, exc)

    async def _postpone(self, id_: bytes, exc: Exception) -> None:
        log.error("schedule.bad", schedule=id_.decode(errors="replace"), error=str(exc))
        bad_until = self._now_ms() + _BAD_SCHEDULE_MS
        await self._client.zadd(self._keys.schedules, {id_: bad_until}, xx=True)


def _name(job: CronJob) -> str:
    """Return the name of the job's ticks: one function may run by several schedules."""
    return f"{job.name}:{job.job_id}" if job.job_id else job.name


def _queue_of(row: dict[str, Any]) -> str:
    queue = row["q"]
    if not isinstance(queue, str) or not queue:
        raise ValueError("it has no queue name")
    return queue


def next_run_ms(row: dict[str, Any], due: int, now: int) -> int:
    """
    Return the first run after both `due` and `now`; missed ticks between them run as one.

    Raises:
        cronsim.CronSimError: the row's expression is wrong.
    """
    if row.get("cron"):
        moment = datetime.fromtimestamp(max(due, now) / 1000, tz=UTC)
        return round(next(CronSim(row["cron"], moment)).timestamp() * 1000)
    every: int = row["every"]
    return due + every * max(1, (now - due) // every + 1)
