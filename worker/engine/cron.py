"""
Enqueues cron jobs: each tick once, whatever the number of workers.

Every worker computes the ticks by the server's clock, and a script lets one of
them enqueue (lua/cron.lua). The server stores the last tick, so that a worker can
detect ticks missed while no worker was up: they run once, or are skipped.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import Any

from arq.cron import CronJob
from redis.exceptions import ResponseError

from cache.connection.pool import OUTAGE
from cache.connection.scripts import load
from cache.logs import get_logger
from worker.engine.cron_expression import CronExpression
from worker.engine.failures import describe
from worker.engine.ticks import Fields, next_tick
from worker.errors import BadCron
from worker.keys import EngineKeys
from worker.numbers import whole
from worker.queue import rhythm

log = get_logger(__name__)

_CRON = load(__package__, "cron", "..queue")
# The clock is read at least this often, because the server's clock may be set.
_MAX_WAIT_S = 10.0
_RETRY_S = 1.0
# Workers that start within this time count as one start.
_STARTUP_MS = 10_000
# A cron job that cannot be enqueued is tried again after this time.
_BAD_CRON_MS = 60_000
# The server's clock was set when it goes back by more; the next ticks are computed anew.
_SET_BACK_MS = 10_000

# The first tick after a moment; both are aware.
Ticks = Callable[[datetime], datetime]


def ticks_of(job: CronJob, zone: tzinfo | None) -> Ticks:
    """
    Return the function that computes a cron job's ticks.

    Raises:
        BadCron: the job can never be due.
    """
    if isinstance(job, CronExpression):
        return partial(rhythm.next_tick, job.expression)
    if type(job).calculate_next is not CronJob.calculate_next:
        return partial(_own_tick, job, zone or UTC)
    try:
        return partial(next_tick, Fields.of(job), zone or UTC)
    except ValueError as exc:
        raise BadCron(f"cron job {job.name!r} can never run: {exc}") from None


def _own_tick(job: CronJob, zone: tzinfo, after: datetime) -> datetime:
    """Ask a user's own class for its next run."""
    job.calculate_next(after.astimezone(zone))
    if job.next_run is None or job.next_run <= after:
        raise ValueError(f"calculate_next gave {job.next_run}, which is not after {after}")
    return job.next_run


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
        self._ticks = [ticks_of(job, timezone) for job in jobs]
        # By the job's place, because names repeat: its next tick, or the end of its pause.
        self._next: dict[int, int] = {}
        self._paused: dict[int, int] = {}
        self._seen_ms = 0

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
        now = self._now_ms()
        if now < self._seen_ms - _SET_BACK_MS:
            self._next = {place: self._after(place, now) for place in self._next}
            self._paused.clear()
        self._seen_ms = now
        for place, job in enumerate(self._jobs):
            if self._paused.get(place, 0) <= now:
                await self._look(place, job)
        times = [*self._next.values(), *self._paused.values()]
        waits = [(moment - self._now_ms()) / 1000 for moment in times]
        return max(0.001, min([_MAX_WAIT_S, *waits]))

    async def _look(self, place: int, job: CronJob) -> None:
        """Enqueue a job if it is due. One that fails pauses, and the others go on."""
        self._paused.pop(place, None)
        try:
            if place not in self._next:
                self._next[place] = await self._begin(place, job)
            due = self._next[place]
            if due <= self._now_ms():
                await self._fire(place, job, due)
                self._next[place] = self._after(place, max(due, self._now_ms()))
        except Exception as exc:
            # The server refuses keys of a wrong type one by one. Its other errors are outages.
            if isinstance(exc, OUTAGE) and not _is_about_a_key(exc):
                raise
            log.exception("cron.bad", task=job.name, error=describe(exc))
            self._next.pop(place, None)
            self._paused[place] = self._now_ms() + _BAD_CRON_MS

    def _after(self, place: int, moment_ms: int) -> int:
        """Return a job's first tick after `moment_ms`."""
        return rhythm.to_ms(self._ticks[place](rhythm.from_ms(moment_ms)))

    async def _begin(self, place: int, job: CronJob) -> int:
        """Enqueue what is due at the start; return the first tick after now."""
        now = self._now_ms()
        if job.run_at_startup:
            await self._fire(place, job, now - now % _STARTUP_MS, name=f"startup:{_name(job)}")
        await self._client.hsetnx(self._keys.cron, _name(job), now)
        seen = await self._client.hget(self._keys.cron, _name(job))
        last = whole(seen, fallback=now)
        # A last tick in the future comes from a clock that was set back: nothing to catch up.
        missed = self._after(place, min(last, now))
        if missed <= now and job.unique:
            if self._missed == "once":
                log.info("cron.catching_up", task=job.name, tick_ms=missed)
                await self._fire(place, job, missed, seen=seen, last=now)
            else:
                await self._client.hset(self._keys.cron, _name(job), now)
        following = self._after(place, now)
        shown = f"{following}:{job.name}"
        await self._client.hset(self._keys.cron_next, _name(job), shown)
        return following

    async def _fire(
        self,
        place: int,
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
        now = self._now_ms()
        args += [seen, tick if last is None else last, now, job.name, _name(job)]
        args.append(self._after(place, max(tick, now)))
        base = self._keys.base
        keys = [self._keys.cron, self._keys.default_queue]
        keys += [base.job(job_id), base.result(job_id), self._keys.wake, self._keys.paused]
        keys += [self._keys.cron_off, self._keys.cron_runs, self._keys.cron_next]
        if await _CRON.run(self._client, keys, args):
            tell = log.debug if getattr(job, "quiet", False) else log.info
            tell("cron.enqueued", task=job.name, job_id=job_id)


def _name(job: CronJob) -> str:
    """Return the name of the job's ticks: one function may run by several schedules."""
    return f"{job.name}:{job.job_id}" if job.job_id else job.name


def _is_about_a_key(exc: Exception) -> bool:
    return isinstance(exc, ResponseError) and "WRONGTYPE" in str(exc)
