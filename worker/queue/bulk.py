"""
Cancels, runs, retries or deletes every job that matches a filter, in bounded steps.

Each step ends within about a second and gives the cursor of the next one: whoever calls can show
progress and stop between two. A dry run counts and changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from worker.errors import InvalidArgument, NotFound
from worker.queue.dead import DeadLetters
from worker.queue.filters import JobFilter
from worker.queue.rows import JobState

if TYPE_CHECKING:
    from worker.queue.client import Jobs

# Jobs of one round: a script takes so many ids.
_ROUND = 200
# Arguments may be large: so many jobs' are in memory at a time.
_CALLS = 20
STEP_S = 1.0


class BulkAction(StrEnum):
    """
    What becomes of each job.

    cancel: a job that waits or runs ends as aborted. run: a deferred one is due now. retry: a dead
    letter is enqueued again. delete: a dead letter is deleted for good.
    """

    CANCEL = "cancel"
    RUN = "run"
    RETRY = "retry"
    DELETE = "delete"

    @property
    def is_of_dead(self) -> bool:
        return self in {BulkAction.RETRY, BulkAction.DELETE}


@dataclass(frozen=True, slots=True)
class BulkStep:
    """
    Jobs that were looked at, that match the filter, and that were changed; sums from the first step on.

    cursor: what the next step goes on behind; "" after the last one.
    """

    looked: int = 0
    matched: int = 0
    done: int = 0
    cursor: str = ""


class Bulk:
    """`queue.bulk`."""

    def __init__(self, jobs: Jobs, dead: DeadLetters) -> None:
        self._jobs = jobs
        self._dead = dead

    async def step(
        self,
        action: BulkAction | str,
        wanted: JobFilter,
        *,
        state: JobState | None = None,
        dry_run: bool = False,
        cursor: str = "",
        limit_s: float = STEP_S,
    ) -> BulkStep:
        """
        Go on behind a cursor for about `limit_s`; the counts are those of this step.

        Jobs that come, run or end meanwhile may or may not be met. A step that is canceled has
        changed whole rounds of at most 200 jobs, and goes on from its cursor again: no job is
        changed twice.

        Raises:
            InvalidArgument: the filter, the state or the cursor is not valid.
            QueueUnavailable: the server cannot be reached; what was done stays done.
        """
        chosen = _action(action)
        _require_sense(chosen, wanted, state)
        until = time.monotonic() + limit_s
        step = BulkStep(cursor=cursor)
        while True:
            ids, looked, after = await self._search(chosen, wanted, state, step.cursor)
            done = 0 if dry_run or not ids else await self._change(chosen, ids)
            step = BulkStep(step.looked + looked, step.matched + len(ids), step.done + done, after)
            if not after or time.monotonic() >= until:
                return step

    async def run(
        self,
        action: BulkAction | str,
        wanted: JobFilter,
        *,
        state: JobState | None = None,
        dry_run: bool = False,
        progress: Callable[[BulkStep], bool | None] | None = None,
    ) -> BulkStep:
        """
        Take all steps, and give `progress` the sums after each; it returns False to stop.

        Raises:
            As `step`.
        """
        total = BulkStep()
        while True:
            step = await self.step(
                action, wanted, state=state, dry_run=dry_run, cursor=total.cursor
            )
            total = replace(
                step,
                looked=total.looked + step.looked,
                matched=total.matched + step.matched,
                done=total.done + step.done,
            )
            goes_on = progress is None or progress(total) is not False
            if not step.cursor or not goes_on:
                return total

    async def _search(
        self, action: BulkAction, wanted: JobFilter, state: JobState | None, cursor: str
    ) -> tuple[Sequence[str], int, str]:
        """The ids of one round that match the filter, how many were looked at, and the next cursor."""
        if action.is_of_dead:
            ids, looked, after = await self._dead.search(wanted, limit=_ROUND, cursor=cursor)
        else:
            of = JobState.DEFERRED if action is BulkAction.RUN and state is None else state
            page = await self._jobs.search(of, wanted, limit=_ROUND, cursor=cursor, looks=_ROUND)
            ids, looked, after = [row.id for row in page.jobs], page.looked, page.cursor
        if wanted.arguments:
            ids = await self._with_arguments(ids, wanted)
        return ids, looked, after

    async def _change(self, action: BulkAction, ids: Sequence[str]) -> int:
        if action is BulkAction.CANCEL:
            return await self._jobs.request_aborts(ids)
        if action is BulkAction.RUN:
            return await self._jobs.run_now(*ids)
        if action is BulkAction.RETRY:
            return await self._dead.retry_each(ids)
        return await self._dead.purge_each(ids)

    async def _with_arguments(self, ids: Sequence[str], wanted: JobFilter) -> list[str]:
        found: list[str] = []
        for at in range(0, len(ids), _CALLS):
            part = ids[at : at + _CALLS]
            hits = await asyncio.gather(*(self._has_arguments(id_, wanted) for id_ in part))
            found += [id_ for id_, hit in zip(part, hits, strict=True) if hit]
        return found

    async def _has_arguments(self, job_id: str, wanted: JobFilter) -> bool:
        try:
            call = await self._jobs.arguments(job_id)
        except (NotFound, InvalidArgument):  # it has ended, or its body cannot be read
            return False
        return wanted.accepts_arguments(call.args, call.kwargs)


def _action(action: BulkAction | str) -> BulkAction:
    try:
        return BulkAction(action)
    except ValueError:
        accepted = ", ".join(BulkAction)
        raise InvalidArgument(f"action {action!r} is not one; accepted: {accepted}") from None


def _require_sense(action: BulkAction, wanted: JobFilter, state: JobState | None) -> None:
    if action.is_of_dead and state is not None:
        raise InvalidArgument(f"{action} is about dead letters, which have no state")
    if wanted.error and not action.is_of_dead:
        raise InvalidArgument("only dead letters have an error: retry or delete")
