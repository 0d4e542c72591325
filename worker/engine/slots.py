"""
The jobs that a worker holds: as many as it has slots run, a few were claimed ahead.

While jobs are quick and many wait, the next ones are here before a slot is
free, so that the worker and the server work at the same time. They are claims
like any other (leased, counted, abortable) and start in the order in which
they were claimed. What has not started after a second goes back uncharged, and
so does all of it when the worker is to take no more jobs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from worker.engine.claim_ahead import ClaimAhead
from worker.engine.execute import Executor, interrupt
from worker.engine.outcome import given_back
from worker.engine.poll import MOST_AHEAD
from worker.engine.records import Claim, End

log = structlog.get_logger(__name__)

# Not started for so long, a job claimed ahead goes back for others to take.
_STALE_S = 1.0
# While enough jobs are here to go on with, ends wait so long for company.
_GATHER_S = 0.005
_COMPANY = 64

# A claim, what to tell the server of it, and how it ended in one word.
Outcome = tuple[Claim, End, str]


class Slots:
    """
    `claims` are all that are held, by id; `outbox` what the server has not been told.

    `kick` is set when there is something to tell or to take.
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
        self._suspect: Claim | None = None  # one at a time: it alone pays when this worker dies
        self._ahead: deque[Claim] = deque()
        self._pace = ClaimAhead(max_jobs)
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
        """How many more jobs find a slot, and how many may be claimed ahead; `coming` are claimed."""
        free = self.max_jobs - len(self.claims) - coming
        ahead = min(MOST_AHEAD, self._pace.ahead(self._loop.time()))
        self._low = ahead // 2
        return max(0, free), max(0, ahead + min(0, free))

    @property
    def pressing(self) -> bool:
        """Whether what is in the outbox should leave now."""
        few = len(self._ahead) <= self._low
        return bool(self.outbox) and (few or len(self.outbox) >= _COMPANY)

    def post(self, most: int) -> list[Outcome]:
        """Empty the outbox, up to `most`."""
        self.kick.clear()
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        batch, self.outbox = self.outbox[:most], self.outbox[most:]
        return batch

    @property
    def has_stalled(self) -> bool:
        """Whether a job is here whose next lost lease makes it poison."""
        return self._suspect is not None and not self._suspect.ended

    def stale_in(self) -> float:
        """Seconds until the first job claimed ahead has waited too long."""
        if not self._ahead:
            return float("inf")
        return max(0.001, self._ahead[0].held_at + _STALE_S - self._loop.time())

    # -- in and out ----------------------------------------------------------------

    def take(self, claims: list[Claim], *, start: bool = True) -> None:
        """Hold these; those that find a slot start now. Without `start` all go back."""
        now = self._loop.time()
        rescued: list[Claim] = []
        self.taken += len(claims)
        for claim in claims:
            old = self.claims.get(claim.id)
            if old is not None:
                # Its lease lapsed here, and it came back to us.
                self.lost([old])
                self._settle(old)
            self.claims[claim.id] = claim
            claim.held_at = now
            if not claim.stalled_count:
                self._ahead.append(claim)
                continue
            log.warning("job.rescued", job_id=claim.job_id, stalled_count=claim.stalled_count)
            if claim.stalled_count + 1 >= self._most_stalled:
                self._suspect = claim
            rescued.append(claim)
        # They start first: what they wait for here might cost them another worker.
        self._ahead.extendleft(reversed(rescued))
        if start:
            self._fill()
        else:
            self.release()

    def turn_away(self, claims: list[Claim]) -> None:
        """Give these back at once, uncharged."""
        self.taken += len(claims)
        for claim in claims:
            self._unstarted(claim)

    def collect(self, claim: Claim, end: End, outcome: str) -> None:
        """A claim is over: tell the server with the next turn, and use its slot."""
        if claim.ended:
            return
        claim.ended = True
        self._settle(claim)
        if self.claims.get(claim.id) is claim:
            del self.claims[claim.id]
        if claim.stop == "lost":
            # Another worker holds it: there is nothing to say.
            if claim.recorded is not None:
                claim.recorded.set()
        else:
            self.outbox.append((claim, end, outcome))
        if claim.started:
            self._pace.ended(self._loop.time())
        if self._ahead:
            self._fill()
        self._tell()

    def vacate(self, claim: Claim) -> None:
        """A job is over, though its end is not written yet: the next one starts."""
        if not claim.ended and self.claims.get(claim.id) is claim:
            claim.vacated = True
            self._vacated += 1
            self._fill()

    def note(self, claim: Claim, note: End) -> None:
        """Tell the server of a running claim."""
        self.outbox.append((claim, note, "started"))
        self._tell()

    def shed(self) -> None:
        """Give back what has waited for a slot too long."""
        if self._ahead and self._ahead[0].held_at + _STALE_S <= self._loop.time():
            self._pace.broke()
            self.release()

    def release(self) -> None:
        """Give back all that has not started, uncharged."""
        # All leave at once: none may take the slot that another one leaves.
        waiting, self._ahead = self._ahead, deque()
        for claim in waiting:
            self._unstarted(claim)

    # -- ends from outside ------------------------------------------------------------

    def aborted(self, marks: Mapping[bytes, float]) -> None:
        """End the running claims that have a mark; the others see it when they start."""
        for id_, mark_ms in marks.items():
            claim = self.claims.get(id_)
            if claim is None:
                continue
            if claim.started:
                self.interrupt(claim, "abort")
            elif claim.mark_ms is None:
                claim.mark_ms = mark_ms

    def lost(self, claims: list[Claim]) -> None:
        """Others hold these now."""
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
            # Cancelled before its first step, its coroutine says nothing itself.
            self._task_over(claim)

    def abandon(self) -> None:
        """Give back what ignores its cancellation."""
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
            # Not a job's error, which `run` takes care of.
            log.exception("job.task_broken", job_id=claim.job_id, error=repr(exc))
        finally:
            self._task_over(claim)

    def _task_over(self, claim: Claim) -> None:
        for table in self._tables:
            if table.get(claim.job_id) is claim.task:
                del table[claim.job_id]
        if not claim.ended:
            self.collect(claim, given_back(claim), "given_back")

    def _tell(self) -> None:
        if self.pressing:
            self.kick.set()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(_GATHER_S, self.kick.set)

    def _unstarted(self, claim: Claim) -> None:
        # The burst it was counted for may take another.
        self.taken -= 1
        self.collect(claim, given_back(claim), "unstarted")


def _not_set_up(_claim: Claim) -> Any:
    raise RuntimeError("run_with comes first")
