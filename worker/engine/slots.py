"""
Holds a worker's jobs: one per slot runs, a few more are claimed ahead.

While jobs are quick and many are due, the next ones are claimed before a slot is
free, so that worker and server are busy at the same time. They are leased,
counted and abortable like any other claim, and start in the order of their
claims. A job that has not started after a second goes back uncharged; all of
them go back when the worker stops claiming.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cache.logs import get_logger
from worker.engine.claim_ahead import ClaimAhead
from worker.engine.execute import Executor, interrupt
from worker.engine.failures import SafeLog, describe
from worker.engine.outcome import given_back
from worker.engine.poll import MOST_AHEAD
from worker.engine.records import Claim, End, weight
from worker.queue.staging import MOST_INLINE

log = SafeLog(get_logger(__name__))

# A job claimed ahead that has not started after this time goes back to its queue.
STALE_S = 1.0
# While enough jobs are claimed ahead, ends wait this long to share a poll, or until
# `_BATCH` of them wait.
_GATHER_S = 0.005
_BATCH = 64
# Far below the largest string that a server takes, 512 MiB: it would refuse the poll forever.
_MOST_LARGE = 64 * 1024 * 1024

# A claim, its end for the server, and how it ended in one word.
Outcome = tuple[Claim, End, str]


class Slots:
    """
    The claims of a worker, running or claimed ahead.

    `claims` has all of them by id; `outbox` has the ends that no poll has reported yet.
    `kick` is set when a poll should be sent: ends wait, or slots are free.
    """

    def __init__(
        self, max_jobs: int, claims: dict[bytes, Claim], tasks: Iterable[Any], *, most_stalled: int
    ) -> None:
        self.max_jobs = max_jobs
        self.claims = claims
        self.outbox: list[Outcome] = []
        self.kick = asyncio.Event()
        self.taken = 0
        self._most_stalled = most_stalled
        # At most one: when this worker dies, no other job is charged for what it did.
        self._stalled: Claim | None = None
        self._ahead: deque[Claim] = deque()
        self.claim_ahead = ClaimAhead(max_jobs)
        self._low = 0
        self._vacated = 0
        self._gathering: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._tables: list[dict[str, asyncio.Task[Any]]] = list(tasks)  # arq's, by job id
        self._run: Callable[[Claim], Any] = _not_set_up

    def run_with(self, executor: Executor) -> None:
        self._run = executor.run

    # -- room ---------------------------------------------------------------------

    @property
    def running(self) -> int:
        return len(self.claims) - len(self._ahead)

    def room(self, coming: int = 0) -> tuple[int, int]:
        """Return the free slots, and how many jobs to claim ahead; `coming` jobs are on their way."""
        free = self.max_jobs - len(self.claims) - coming
        ahead = min(MOST_AHEAD, self.claim_ahead.ahead(self._loop.time()))
        self._low = ahead // 2
        return max(0, free), max(0, ahead + min(0, free))

    @property
    def pressing(self) -> bool:
        """Whether the outbox should be sent now."""
        few = len(self._ahead) <= self._low
        return bool(self.outbox) and (few or len(self.outbox) >= _BATCH)

    def post(self, most: int) -> list[Outcome]:
        """Take up to `most` outcomes out of the outbox, as many as one script call may carry."""
        self.kick.clear()
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        count, inline, large = 0, 0, 0
        for _, end, _ in self.outbox[:most]:
            more = weight(end)
            inline, large = inline + more[0], large + more[1]
            if count and (inline > MOST_INLINE or large > _MOST_LARGE):
                break
            count += 1
        batch, self.outbox = self.outbox[:count], self.outbox[count:]
        if self.outbox:
            self.kick.set()
        return batch

    @property
    def has_stalled(self) -> bool:
        """Whether a job is here that one more lost lease makes poison."""
        return self._stalled is not None and not self._stalled.ended

    def stale_in(self) -> float:
        """Return the seconds until the first job claimed ahead must go back."""
        if not self._ahead:
            return float("inf")
        return max(0.001, self._ahead[0].held_at + STALE_S - self._loop.time())

    # -- in and out ----------------------------------------------------------------

    def take(self, claims: list[Claim], *, start: bool = True) -> int:
        """
        Add these claims and start those with a free slot. Without `start` all go back.

        Returns how many of them are stalled jobs: their leases lapsed before.
        """
        now = self._loop.time()
        rescued: list[Claim] = []
        self.taken += len(claims)
        for claim in claims:
            old = self.claims.get(claim.id)
            if old is not None:
                # Its lease lapsed, and this same worker claimed it again.
                self.lost([old])
                self._settle(old)
            self.claims[claim.id] = claim
            claim.held_at = now
            if not claim.stalled_count:
                self._ahead.append(claim)
                continue
            log.warning("job.rescued", job_id=claim.job_id, stalled_count=claim.stalled_count)
            if claim.stalled_count + 1 >= self._most_stalled:
                self._stalled = claim
            rescued.append(claim)
        # Stalled jobs start first: waiting here, one could lose yet another worker.
        self._ahead.extendleft(reversed(rescued))
        if start:
            self._fill()
        else:
            self.release()
        return len(rescued)

    def give_back(self, claims: list[Claim]) -> None:
        """Return these to their queues at once, uncharged."""
        self.taken += len(claims)
        for claim in claims:
            self._unstarted(claim)

    def collect(self, claim: Claim, end: End, outcome: str) -> None:
        """Put a claim's end into the outbox and give its slot to the next job."""
        if claim.ended:
            return
        claim.ended = True
        self._settle(claim)
        if self.claims.get(claim.id) is claim:
            del self.claims[claim.id]
        if claim.stop == "lost":
            # Another worker holds it, so there is no end to report.
            if claim.recorded is not None:
                claim.recorded.set()
        else:
            self.outbox.append((claim, end, outcome))
        if claim.started:
            self.claim_ahead.ended(self._loop.time())
        if self._ahead:
            self._fill()
        self._request_poll()

    def vacate(self, claim: Claim) -> None:
        """Give a finished job's slot to the next one before the job's end is built."""
        if not claim.ended and self.claims.get(claim.id) is claim:
            claim.vacated = True
            self._vacated += 1
            self._fill()

    def note(self, claim: Claim, note: End) -> None:
        """Report that a claim runs."""
        self.outbox.append((claim, note, "started"))
        self._request_poll()

    def shed(self) -> None:
        """Give all waiting jobs back when the first has waited too long for a slot."""
        if self._ahead and self._ahead[0].held_at + STALE_S <= self._loop.time():
            self.claim_ahead.reset()
            self.release()

    def release(self) -> None:
        """Give back all jobs that have not started, uncharged."""
        # Empty the queue first: giving one back must not start the next.
        waiting, self._ahead = self._ahead, deque()
        for claim in waiting:
            self._unstarted(claim)

    # -- ends from outside ------------------------------------------------------------

    def aborted(self, marks: Mapping[bytes, float]) -> None:
        """Cancel the running claims that have an abort mark; the others read it when they start."""
        for id_, mark_ms in marks.items():
            claim = self.claims.get(id_)
            if claim is None:
                continue
            if claim.started:
                self.interrupt(claim, "abort")
            elif claim.mark_ms is None:
                claim.mark_ms = mark_ms

    def lost(self, claims: list[Claim]) -> None:
        """Cancel these: other workers hold them now."""
        for claim in claims:
            if not claim.ended:
                log.warning("lease.lost", job_id=claim.job_id)
                self.interrupt(claim, "lost")

    def interrupt_all(self) -> None:
        self.release()
        for claim in list(self.claims.values()):
            self.interrupt(claim, "shutdown")

    def interrupt(self, claim: Claim, why: str) -> None:
        if claim.task is None:
            claim.stop = why
            self._ahead.remove(claim)
            self._unstarted(claim)
            return
        interrupt(claim, why)
        if not claim.started:
            # A task canceled before its first step never runs its `finally`.
            self._task_over(claim)

    def abandon(self) -> None:
        """Give back the jobs that ignore their cancellation."""
        for claim in list(self.claims.values()):
            log.warning("job.ignored_cancellation", job_id=claim.job_id)
            self.collect(claim, given_back(claim), "given_back")

    # -- inside ----------------------------------------------------------------------

    def _fill(self) -> None:
        ahead = self._ahead
        while ahead and len(self.claims) - len(ahead) - self._vacated < self.max_jobs:
            self._start(ahead.popleft())

    def _settle(self, claim: Claim) -> None:
        self._vacated -= claim.vacated
        claim.vacated = False

    def _start(self, claim: Claim) -> None:
        task = claim.task = self._loop.create_task(self._carry(claim))
        for table in self._tables:
            table[claim.job_id] = task

    async def _carry(self, claim: Claim) -> None:
        claim.started = True
        try:
            await self._run(claim)
        except Exception as exc:
            # An error of the engine: `run` handles those of jobs.
            log.exception("job.task_broken", job_id=claim.job_id, error=describe(exc))
        finally:
            self._task_over(claim)

    def _task_over(self, claim: Claim) -> None:
        for table in self._tables:
            if table.get(claim.job_id) is claim.task:
                del table[claim.job_id]
        if not claim.ended:
            self.collect(claim, given_back(claim), "given_back")

    def _request_poll(self) -> None:
        if self.pressing:
            self.kick.set()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(_GATHER_S, self.kick.set)

    def _unstarted(self, claim: Claim) -> None:
        # A burst may claim another job for it.
        self.taken -= 1
        self.collect(claim, given_back(claim), "unstarted")


def _not_set_up(_claim: Claim) -> Any:
    raise RuntimeError("call run_with before take")
