"""
Switches repeating jobs and crons off for all workers, and on again.

The scripts that enqueue a run read the switch, so one that is off enqueues nothing from the
call's return on, and no poll costs more. What it missed meanwhile is not made good.
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

log = get_logger(__name__)

_SWITCH = load(__package__, "switch")


@dataclass(frozen=True, slots=True)
class CronState:
    """
    A cron that some worker has had.

    last_at: its last tick; before the first, when a worker began with it. off_since: None while it is on.
    """

    name: str
    last_at: datetime | None
    off_since: datetime | None


class Switches:
    """`queue.jobs.switches`."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = EngineKeys(keys)

    async def off(self, name: str) -> bool:
        """
        Enqueue no run of this schedule or cron any more. False if it is off.

        Queued runs stay, and `run_schedule` still runs a schedule by hand. A client that registers
        the schedule again leaves it off; removing it forgets the switch.

        Raises:
            NotFound: no schedule has this id, and no worker has had a cron of this name.
        """
        return await self._switch(name, on=False)

    async def on(self, name: str) -> bool:
        """
        Run this schedule or cron again, from its next tick after now on. False if it is on.

        Raises:
            NotFound: as `off`.
        """
        return await self._switch(name, on=True)

    async def crons(self) -> list[CronState]:
        """
        The crons that workers have had, by name.

        One that runs when a worker starts has a second entry, "startup:<name>", for that run.
        """
        last = await reach(self._client.hgetall(self._keys.cron))
        off = await reach(self._client.hgetall(self._keys.cron_off))
        return [
            CronState(name.decode(errors="replace"), _time(last[name]), _time(off.get(name)))
            for name in sorted(last)
        ]

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


def _time(ms: Any) -> datetime | None:
    found = whole(ms)
    return moment(found) if 0 < found <= MOST_MS else None
