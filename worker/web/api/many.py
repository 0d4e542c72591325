"""Enqueues jobs by hand, and changes everything that matches filters."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from worker.client import JobQueue
from worker.queue.calls import Call
from worker.queue.filters import JobFilter
from worker.queue.rows import JobState
from worker.web.api.queries import BulkDead, BulkJobs, BulkQuery, NewJob, Query, given
from worker.web.api.views import BulkDone, Done

# Parts of a filter that were not given.
_UNSAID: tuple[Any, ...] = (UNSET, False, 0, "", {})


async def add_job(queue: JobQueue, target: NewJob) -> Done:
    """Enqueue a job by hand."""
    each = Call(
        target.function,
        tuple(target.args),
        target.kwargs,
        target.priority,
        job_id=given(target.job_id),
        delay_s=target.delay_s,
    )
    job = await queue.jobs.add(each)
    if job.is_new:
        return Done(True, f"enqueued {job.id}")
    return Done(False, f"nothing done: a job {job.id} waits or runs")


async def change_jobs(queue: JobQueue, target: BulkJobs) -> BulkDone:
    """Take one step of a change of many jobs."""
    return await _step(queue, target.action, target, state=given(target.state))


async def change_dead(queue: JobQueue, target: BulkDead) -> BulkDone:
    """Take one step of a change of many dead letters."""
    return await _step(queue, target.action, target, error=given(target.error) or "")


async def _step(
    queue: JobQueue,
    action: str,
    target: BulkQuery,
    *,
    state: JobState | None = None,
    error: str = "",
) -> BulkDone:
    wanted = JobFilter(
        function=given(target.function),
        priority=given(target.priority),
        id_prefix=given(target.id_prefix) or "",
        min_tries=int(target.min_tries),
        min_age_s=target.min_age_s,
        error=error,
        arguments=target.arguments,
    )
    step = await queue.bulk.step(
        action,
        wanted,
        state=state,
        dry_run=target.dry_run,
        cursor=target.cursor,
    )
    done = f"{step.matched} match" if target.dry_run else f"{step.done} of {step.matched} changed"
    message = f"{done} among {step.looked}" + ("; there are more" if step.cursor else "")
    return BulkDone(step.done > 0, message, step.looked, step.matched, step.done, step.cursor)


def subject_of(target: Query) -> str:
    """What the audit trail says of it: the function, or the parts of a filter that were given."""
    if isinstance(target, NewJob):
        return f"function {target.function}"
    if not isinstance(target, BulkQuery):
        return ""
    parts = [(name, getattr(target, name)) for name in target.__struct_fields__]
    return " ".join(f"{name}={value}" for name, value in parts if value not in _UNSAID)
