"""Enqueues the repeating jobs that clients register (worker/queue/schedules.py), each run once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from cache.connection.pool import OUTAGE
from cache.connection.scripts import load
from cache.encoding import codec
from cache.logs import get_logger
from worker.engine.failures import describe
from worker.engine.gatherings import GATHERING, Gatherings
from worker.keys import EngineKeys
from worker.queue.priority import Priority
from worker.queue.rhythm import next_run_ms

log = get_logger(__name__)

_RUN = load(__package__, "schedule_run", "..queue")
_MOST_SCHEDULES = 100
_BAD_SCHEDULE_MS = 3_600_000


class ScheduleRunner:
    """Enqueues schedules that are due. Times are Unix ms by the server's clock."""

    def __init__(
        self,
        client: Any,
        keys: EngineKeys,
        *,
        encode: Callable[[dict[str, Any]], bytes],
        now_ms: Callable[[], int],
    ) -> None:
        self._client = client
        self._keys = keys
        self._encode = encode
        self._now_ms = now_ms
        self._gatherings = Gatherings(client, keys.base, keys.schedules)
        self._busy = False

    async def run(self) -> None:
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
                if id_.startswith(GATHERING):
                    await self._gatherings.enqueue(id_)
                else:
                    await self._run_one(id_, score)
        except OUTAGE:
            return  # they stay due: the next poll starts this again
        finally:
            self._busy = False

    async def _run_one(self, id_: bytes, score: float) -> None:
        data = await self._client.hget(self._keys.schedule_jobs, id_)
        if data is None:
            await self._client.zrem(self._keys.schedules, id_)
            await self._client.hdel(self._keys.schedule_runs, id_)
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
            queue = self._keys.base.queue(Priority(row["p"]))
            job_id = f"{id_.decode()}:{due}:~"
            body = self._encode({"t": None, "f": row["f"], "a": row["a"], "k": row["k"], "et": now})
            args = [id_, due, next_due, job_id, body, str(row["f"]), row["p"]]
        except Exception as exc:  # noqa: BLE001  (one bad schedule must not stop the others)
            await self._postpone(id_, exc)
            return
        if due == 0:
            # A new cron schedule: its first tick is still to come.
            await self._postpone_to(id_, next_due)
            return
        base = self._keys.base
        keys = [self._keys.schedules, queue, base.job(job_id), base.result(job_id), self._keys.wake]
        keys += [self._keys.schedule_runs, self._keys.paused]
        try:
            await _RUN.run(self._client, keys, args)
        except ResponseError as exc:
            if "WRONGTYPE" not in str(exc):
                raise
            await self._postpone(id_, exc)

    async def _postpone(self, id_: bytes, exc: Exception) -> None:
        log.error("schedule.bad", schedule=id_.decode(errors="replace"), error=describe(exc))
        await self._postpone_to(id_, self._now_ms() + _BAD_SCHEDULE_MS)

    async def _postpone_to(self, id_: bytes, due: int) -> None:
        # gt: one that was switched off meanwhile is held at a later time, and stays there.
        await self._client.zadd(self._keys.schedules, {id_: due}, xx=True, gt=True)
