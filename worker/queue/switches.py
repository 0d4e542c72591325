"""
Switches repeating jobs and crons off for all workers, and on again.

The scripts that enqueue a run read the switch, so after the call nothing is enqueued any
more, and no poll costs more. Missed runs are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cache.connection.scripts import load
from cache.encoding import codec
from cache.errors import CodecError
from cache.logs import get_logger
from worker.errors import NotFound
from worker.keys import EngineKeys, QueueKeys
from worker.numbers import MOST_MS, moment, whole
from worker.queue.arguments import require_name
from worker.queue.job import reach
from worker.queue.schedules import outcomes_of

log = get_logger(__name__)

_SWITCH = load(__package__, "switch")
# A tick that is due is enqueued within this time.
_LATE_MS = 60_000


@dataclass(frozen=True, slots=True)
class CronState:
    """
    A cron that a worker has, or had.

    last_at: its last tick; before the first, when a worker started with it. off_since: None while it
    is on. next_at: None while it is off, and if no worker has it any more. last_job: the job of the
    last tick, "" before the first. last_outcome: as in `ScheduleState`.
    """

    name: str
    last_at: datetime | None
    off_since: datetime | None
    next_at: datetime | None = None
    last_job: str = ""
    last_outcome: str = ""


class Switches:
    """`queue.jobs.switches`."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = EngineKeys(keys)

    async def off(self, name: str) -> bool:
        """
        Stop enqueueing runs of this schedule or cron. False if it is off already.

        Queued runs stay, and `run_schedule` still runs a schedule by hand. A client that registers
        the schedule again leaves it off; removing it forgets the switch.

        Raises:
            NotFound: no schedule has this id, and no worker has had a cron of this name.
        """
        return await self._switch(name, on=False)

    async def on(self, name: str) -> bool:
        """
        Run this schedule or cron again, from its next tick on. False if it is on already.

        Raises:
            NotFound: as `off`.
        """
        return await self._switch(name, on=True)

    async def crons(self) -> list[CronState]:
        """
        The crons that workers have had, by name.

        One that runs when a worker starts has a second entry, "startup:<name>", for that run.
        """
        keys = self._keys
        seconds, _ = await reach(self._client.time())
        last, off, runs, following = [
            await reach(self._client.hgetall(key))
            for key in (keys.cron, keys.cron_off, keys.cron_runs, keys.cron_next)
        ]
        jobs = [runs.get(name, b"").decode(errors="replace") for name in sorted(last)]
        outcomes = await reach(outcomes_of(self._client, keys.base, jobs))
        return [
            CronState(
                name.decode(errors="replace"),
                _time(last[name]),
                _time(off.get(name)),
                _next_tick(following.get(name), seconds * 1000) if name not in off else None,
                job,
                outcome,
            )
            for name, job, outcome in zip(sorted(last), jobs, outcomes, strict=True)
        ]

    async def function_of(self, name: str) -> str | None:
        """The function that a cron runs; None if no worker has had the cron."""
        found = await reach(self._client.hget(self._keys.cron_next, name))
        return None if found is None else found.decode(errors="replace").partition(":")[2]

    async def _switch(self, name: str, *, on: bool) -> bool:
        require_name("name", name)
        every_ms = await self._interval_ms(name) if on else 0
        engine = self._keys
        keys = [engine.schedules, engine.schedule_jobs, engine.cron, engine.cron_off, engine.wake]
        outcome = int(await reach(_SWITCH.run(self._client, keys, [name, int(on), every_ms])))
        if outcome == -1:
            raise NotFound(f"no schedule or cron {name!r}")
        if outcome:
            log.info("schedule.switched_on" if on else "schedule.switched_off", schedule=name)
        return bool(outcome)

    async def _interval_ms(self, name: str) -> int:
        """The interval of a schedule; 0 where it has none, or cannot be read."""
        data = await reach(self._client.hget(self._keys.schedule_jobs, name))
        try:
            return whole(codec.decode(data)["every"]) if data else 0
        except (CodecError, LookupError, TypeError):
            return 0


def _next_tick(stored: bytes | None, now_ms: int) -> datetime | None:
    """The next tick; None for one in the past, because then no worker has the cron any more."""
    ms = whole((stored or b"").partition(b":")[0])
    return _time(ms) if ms > now_ms - _LATE_MS else None


def _time(ms: Any) -> datetime | None:
    found = whole(ms)
    return moment(found) if 0 < found <= MOST_MS else None
