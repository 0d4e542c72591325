"""
Runs the poll loop of one `main()`: report finished jobs, claim for free slots, wait.

Jobs keep running during a poll (poll.py); those that end meanwhile go into the
next one. While more jobs are due than there are slots, the next poll is sent
before the last reply is processed, so that server and worker are busy at the
same time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import structlog

from cache.connection.pool import OUTAGE
from cache.connection.tasks import end
from cache.logs import get_logger
from worker.engine import stalled
from worker.engine.account import account
from worker.engine.cron import CronRunner
from worker.engine.parking import ParkedReport
from worker.engine.poll import MOST_ENDS, Poll
from worker.engine.records import Claim, PollReply, PollResult, read_poll
from worker.engine.schedules import ScheduleRunner
from worker.engine.slots import Outcome, Slots
from worker.engine.state import WorkerState
from worker.engine.tally import tally
from worker.engine.wake import Waker
from worker.helpers import run_once

log = get_logger(__name__)

# An idle worker sends a full poll at least this often: it also reads the server's clock.
_FULL_POLL_S = 30.0
# A worker that parked a job waits this much longer, for so many seconds, when a job is
# due again: another worker may have the function.
YIELD_S, _YIELD_FOR_S = 0.05, 20.0
# A worker that ends waits this long to learn what its waker claimed last.
_GIVE_UP_S = 5.0

# The next poll, sent before the last reply was read: the ends in it, and its reply.
_Early = tuple[list[Outcome], asyncio.Task[PollReply]]


class Poller:
    """Keeps a worker's slots full and reports its finished jobs, until the worker ends."""

    def __init__(
        self,
        worker: WorkerState,
        poll: Poll,
        slots: Slots,
        waker: Waker,
        *,
        crons: CronRunner,
        schedules: ScheduleRunner,
    ) -> None:
        self._worker = worker
        self._poll = poll
        self._slots = slots
        self._waker = waker
        waker.deliver_to(self._deliver)
        self._crons = crons
        self._schedules = schedules
        self._parked = ParkedReport(worker.pool, worker.keys.base, spawn=self._spawn)
        self._is_sending = False
        self._asked = 0  # slots promised to the polls under way
        self._yields_until = float("-inf")
        self._side_tasks: set[asyncio.Task[Any]] = set()

    @property
    def has_unsent_ends(self) -> bool:
        """Whether jobs have ended that the server may not know about."""
        return bool(self._slots.outbox) or self._is_sending

    async def run(self) -> None:
        """
        Poll until the worker is over.

        Raises:
            PollStopped: the server is away, and the worker's time to end is used up.
        """
        worker, slots = self._worker, self._slots
        structlog.contextvars.bind_contextvars(worker_id=worker.worker_id)
        if worker.burst and worker.cron_jobs:
            # A burst also runs the ticks that are due when it starts.
            with contextlib.suppress(*OUTAGE):
                await self._crons.tick()
        early: _Early | None = None
        try:
            while True:
                batch, sending = early or self._next()
                self._is_sending = True
                reply = await sending
                early = None
                if reply.more and slots.pressing:
                    following, sending = self._next(reply)
                    early = following, asyncio.create_task(sending)
                    await _let_it_leave()
                self._is_sending = early is not None
                polled = read_poll(reply)
                worker.learn_from(polled)
                if account(worker, batch, polled, self._parked):
                    self._yields_until = asyncio.get_running_loop().time() + _YIELD_FOR_S
                self._asked = 0 if early is None else self._asked - len(polled.claims)
                self._accept(polled)
                if early is None:
                    if self._is_over(polled) and await self._nothing_comes():
                        return
                    await self._pause(polled)
        finally:
            if early is not None:
                await end(early[1], limit_s=float("inf"))

    async def run_waker(self) -> None:
        """Wait for tokens until canceled."""
        structlog.contextvars.bind_contextvars(worker_id=self._worker.worker_id)
        await self._waker.run()

    def _deliver(self, claims: list[Claim]) -> None:
        """Take the waker's claims if slots are free that no poll under way has asked for."""
        slots = self._slots
        free, _ = self._room(self._asked)
        if len(claims) <= free:
            slots.take(claims)
        else:
            slots.give_back(claims)
        if len(claims) >= free:
            self._waker.set_idle(False)

    async def finish(self) -> None:
        """Wait for the side tasks."""
        await asyncio.gather(*self._side_tasks, return_exceptions=True)

    # -- steps of a poll ---------------------------------------------------------------

    def _next(
        self, unread: PollReply | None = None
    ) -> tuple[list[Outcome], Coroutine[Any, Any, PollReply]]:
        """Prepare the next poll: its ends, and the call. `unread` is a reply not processed yet."""
        slots = self._slots
        slots.shed()
        batch = slots.post(MOST_ENDS)
        coming = 0 if unread is None else unread.claims
        want, ahead = self._room(coming)
        if want > 1 and self._waker.is_waiting:
            want -= 1  # keep a slot for the job that the waker may bring
        self._asked = coming + want
        groups = tally(batch)
        may_stall = not slots.has_stalled and not (unread is not None and unread.has_rescued)
        sending = self._poll.send(
            [end for _, end, _ in batch],
            want,
            ahead=ahead,
            marks=self._worker.allow_abort_jobs and bool(slots.claims),
            stalled_jobs=int(may_stall),
            groups=groups,
        )
        return batch, sending

    def _room(self, coming: int = 0) -> tuple[int, int]:
        """Return how many jobs find a slot now, and how many more may be claimed ahead."""
        worker, slots = self._worker, self._slots
        if not worker.allow_pick_jobs:
            return 0, 0
        want, ahead = slots.room(coming)
        if worker.burst and worker.max_burst_jobs >= 0:
            left = max(0, worker.max_burst_jobs - slots.taken - coming)
            want = min(want, left)
            ahead = min(ahead, left - want)
        return want, ahead

    def _accept(self, polled: PollResult) -> None:
        worker, slots = self._worker, self._slots
        worker.jobs_rescued += slots.take(polled.claims, start=worker.allow_pick_jobs)
        if polled.marks:
            slots.aborted(polled.marks)
        if polled.scheduled:
            self._spawn("schedules", self._schedules.run())
        if polled.poisoned:
            log.error("job.poisoned", job_ids=[i.decode(errors="replace") for i in polled.poisoned])
            worker.jobs_dead += len(polled.poisoned)
            self._spawn("poison results", stalled.report(worker, polled.poisoned))
        if polled.dropped:
            log.warning("dead.dropped", count=polled.dropped, most=worker.options.dead_max)

    def _is_over(self, polled: PollResult) -> bool:
        worker, slots = self._worker, self._slots
        if slots.claims or slots.outbox:
            return False
        if worker.is_draining:
            return True
        spent = worker.max_burst_jobs >= 0 and slots.taken >= worker.max_burst_jobs
        return worker.burst and (spent or (polled.size == 0 and not self._side_tasks))

    async def _nothing_comes(self) -> bool:
        """End the waker's wait; return whether it brought nothing to do."""
        if self._waker.is_waiting:
            with contextlib.suppress(TimeoutError):
                await self._waker.give_up(_GIVE_UP_S)
        return not self._slots.claims and not self._slots.outbox

    async def _pause(self, polled: PollResult) -> None:
        slots, options = self._slots, self._worker.options
        free, _ = self._room()
        if slots.pressing or (polled.more and free and (polled.claims or polled.poisoned)):
            # The jobs just started get one step, so that quick ones end before the next poll.
            await asyncio.sleep(0)
            return
        self._waker.set_idle(bool(free))
        poll_s = min(options.poll_s, slots.stale_in())
        if slots.claims and self._worker.allow_abort_jobs:
            poll_s = min(poll_s, options.abort_poll_s)
        if polled.next_due is not None and free:
            yields_s = YIELD_S if asyncio.get_running_loop().time() < self._yields_until else 0
            poll_s = min(poll_s, max(0.001, (polled.next_due - polled.now) / 1000 + yields_s))
        # While there is no job at all, one cheap command replaces the full poll.
        is_empty = polled.is_empty and not slots.claims
        checks = int(_FULL_POLL_S / options.poll_s) if is_empty else 0
        while not await self.wait_for_kick(poll_s) and checks and await self._poll.finds_nothing():
            checks -= 1
        self._waker.set_idle(False)

    async def wait_for_kick(self, wait_s: float) -> bool:
        """Wait until the slots ask for a poll, at most `wait_s`; return whether they did."""
        try:
            async with asyncio.timeout(wait_s):
                return await self._slots.kick.wait()
        except TimeoutError:
            return False

    def _spawn(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(run_once(name, coroutine))
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)


async def _let_it_leave() -> None:
    """Let the sending task run, and then the connection write, before going on."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
