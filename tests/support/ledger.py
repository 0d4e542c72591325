"""
Breaks servers under load, with a ledger outside of them: what was acknowledged, and what ran.

A place is what breaks: `SlotOf` a cluster's slot, `WatchedPair` a master that Sentinels watch.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from arq.worker import func

from tests.support.breakable import ABRUPT, CONFIRMED, Place
from tests.support.engine import running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker import JobQueue, NotFound, QueueUnavailable
from worker.engine import EngineOptions

# A lease outlasts a failover; test_stalled.py has those that lapse in one. Polls are rare: the new
# owner must be noticed without them.
OPTIONS = EngineOptions(lease_s=30.0, poll_s=60.0, abort_poll_s=0.2, heartbeat_s=0.3)
HELD, AT_ONCE = 4, 30


class Ledger:
    """What was acknowledged, and what ran."""

    def __init__(self) -> None:
        self.acknowledged: list[Any] = []
        self.unconfirmed: list[Any] = []  # a failover may lose these
        self.wait_replicas = 0
        self.dies = False  # the master may, before it sends its replica what it acknowledges
        self.runs: Counter[str] = Counter()
        self.tries: Counter[int] = Counter()
        self.longest_gap_s = 0.0  # of one enqueue, with its repeats
        self.longest_run_gap_s = 0.0  # between two runs, while jobs are enqueued all the time
        self._ran_at: float | None = None
        self.go = asyncio.Event()

    async def hold(self, ctx: dict[str, Any]) -> None:
        await self.note(ctx)
        await self.go.wait()

    def watch_runs(self, *, on: bool) -> None:
        self._ran_at = time.monotonic() if on else None

    async def note(self, ctx: dict[str, Any]) -> None:
        if self._ran_at is not None:
            now = time.monotonic()
            self.longest_run_gap_s = max(self.longest_run_gap_s, now - self._ran_at)
            self._ran_at = now
        self.runs[ctx["job_id"]] += 1
        self.tries[ctx["job_try"]] += 1

    @property
    def stored(self) -> int:
        return len(self.acknowledged) + len(self.unconfirmed)

    async def lost(self) -> int:
        """Wait for the end of every job; return how many of those do not exist that may be lost."""
        missing = [(job.id, job.confirmed) for job in await _missing(self.acknowledged)]
        assert not missing, f"{len(missing)} acknowledged jobs are lost: {missing[:9]}"
        return len(await _missing(self.unconfirmed))

    async def enqueue(self, queue: JobQueue, name: str) -> None:
        """Enqueue one job, again under the same id until it is acknowledged."""
        job_id, since = f"{name}-{self.stored}", time.monotonic()

        async def is_acknowledged() -> bool:
            try:
                job = await queue.enqueue(name, job_id=job_id, wait_replicas=self.wait_replicas)
            except QueueUnavailable:
                return False
            is_safe = job.confirmed or (job.confirmed is None and not self.dies)
            (self.acknowledged if is_safe else self.unconfirmed).append(job)
            return True

        await eventually(is_acknowledged, deadline_s=60)
        self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - since)


async def lose_nothing(place: Place, faults: list[str]) -> None:
    """Break the servers again and again under load; no acknowledged job may be lost or charged for."""
    ledger, prefix = Ledger(), place.prefix
    work = [func(ledger.hold, name="hold"), func(ledger.note, name="note")]
    async with place.client() as client:
        queue = queue_of(client, prefix)
        async with running(client, prefix, work, options=OPTIONS, max_jobs=20) as worker:
            for _ in range(HELD):
                await ledger.enqueue(queue, "hold")
            await eventually(lambda: _is(sum(ledger.runs.values()) == HELD), deadline_s=60)
            for fault in faults:
                await _under(place, fault, queue, ledger)
            ledger.go.set()
            lost = await ledger.lost()
            # Where ends of jobs are lost too, their leases lapse, and they run again.
            assert worker.jobs_rescued == 0 or ABRUPT & set(faults)
        assert not await queue.dead.list()
        await queue.aclose()
    held = [ledger.runs[f"hold-{n}"] for n in range(HELD)]
    print(  # noqa: T201
        f"{faults}: {len(ledger.acknowledged)} jobs, {len(ledger.unconfirmed)} unconfirmed of which "
        f"{lost} lost, gap {ledger.longest_gap_s:.2f} s, of runs {ledger.longest_run_gap_s:.2f} s"
    )
    assert held == [1] * HELD
    assert set(ledger.tries) == {1}


async def _under(place: Place, fault: str, queue: JobQueue, ledger: Ledger) -> None:
    """Enqueue before, during and after a fault; what was enqueued before it runs meanwhile."""
    for _ in range(AT_ONCE):
        await ledger.enqueue(queue, "note")
    if fault in ABRUPT:
        await place.replicated()
    ledger.wait_replicas, ledger.dies = int(fault in CONFIRMED), fault in ABRUPT
    broken = asyncio.Event()

    async def load() -> None:
        while not broken.is_set():
            await ledger.enqueue(queue, "note")

    ledger.watch_runs(on=True)
    loading = asyncio.create_task(load())
    async with place.broken(fault):
        ledger.dies = False
        done = ledger.stored
        await eventually(lambda: _is(ledger.stored > done + AT_ONCE), deadline_s=60)
    ledger.watch_runs(on=False)
    broken.set()
    await loading


async def _missing(jobs: list[Any]) -> list[Any]:
    found = []
    for job in jobs:
        try:
            await job.result(timeout_s=60)
        except NotFound:
            found.append(job)
    return found


async def _is(value: bool) -> bool:
    return value
