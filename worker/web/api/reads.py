"""
Reads of jobs and LLM batches for the API and the page.

Each function asks the facade and returns what is shown. webhook_reads.py has those of webhooks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from cache.connection.pool import OUTAGE
from cache.connection.refusals import explain
from cache.usage import CacheUsage
from worker.errors import NotFound, QueueUnavailable
from worker.llm.history import GroupHistory
from worker.queue.audit import AuditPage
from worker.queue.fleet import WorkerRow
from worker.queue.history import FunctionHistory
from worker.queue.letters import DeadLetter
from worker.queue.listing import JobPage
from worker.queue.overview import Overview
from worker.queue.pauses import Pause
from worker.queue.priority import Priority
from worker.queue.store import JobStatus
from worker.queue.switches import CronState
from worker.web.api import queries, views
from worker.web.api.queries import given
from worker.web.site import Site

# An argument may be large; its beginning tells what it is.
_MOST_CHARS = 2000
_CACHE_ANSWERS_S = 1.0


async def overview(site: Site, _query: queries.Nothing) -> Overview:
    """Counts of jobs, deliveries and batches: cheap, however many there are."""
    return await site.queue.jobs.overview()


async def stats(site: Site, _query: queries.Nothing) -> dict[str, dict[str, float]]:
    """Counts by priority. It looks at every running job and dead letter, in short steps."""
    return await site.queue.stats()


async def cache(site: Site, _query: queries.Nothing) -> CacheUsage:
    """The cache's reads by kind, of all processes, and the memory of its server."""
    if site.cache is None:
        raise NotFound("there is no cache: LETTA_USE_AGENT_CACHE is false")
    try:
        async with asyncio.timeout(_CACHE_ANSWERS_S):
            return await site.cache()
    except OUTAGE as exc:
        raise QueueUnavailable(f"the cache's server: {explain(exc)}") from None


async def cache_if_there(site: Site) -> CacheUsage | None:
    """Return the cache's usage, or None during its outage: views of the queue stay available."""
    try:
        return await cache(site, queries.Nothing())
    except (NotFound, QueueUnavailable):
        return None


async def jobs(site: Site, query: queries.JobsQuery) -> JobPage:
    """A page of jobs that have not ended."""
    return await site.queue.jobs.list(
        given(query.state),
        function=given(query.function),
        priority=given(query.priority),
        limit=query.limit,
        cursor=query.cursor,
    )


async def job(site: Site, query: queries.ById) -> views.JobView:
    """One job: waiting, running, dead, or complete."""
    found = await _job(site, query.id)
    if not site.show_arguments or found.state == "complete":
        return found
    try:
        call = await site.queue.jobs.arguments(query.id)
    except NotFound:
        return found
    return msgspec.structs.replace(
        found,
        args=[_text(value) for value in call.args],
        kwargs={name: _text(value) for name, value in call.kwargs.items()},
    )


async def _job(site: Site, job_id: str) -> views.JobView:
    try:
        row = await site.queue.jobs.describe(job_id)
    except NotFound:
        row = None
    if row is not None:
        return views.JobView(
            id=row.id,
            state=row.state.value,
            function=row.function,
            priority=row.priority.value,
            due_at=row.due_at,
            enqueued_at=row.enqueued_at,
            tries=row.tries,
            worker=row.worker,
            bytes=row.bytes,
        )
    letter = await site.queue.dead.get(job_id)
    if letter is not None:
        return views.JobView(
            id=letter.id,
            state="dead",
            function=letter.name,
            priority=letter.priority,
            tries=letter.tries,
            bytes=len(letter.body),
            reason=letter.reason,
            error=letter.error,
            died_at=letter.died_at,
        )
    status = await site.queue.jobs.get(job_id).status()
    if status is JobStatus.NOT_FOUND:
        raise NotFound(f"no job {job_id!r} waits, runs or is dead, and no result of it is kept")
    state = "running" if status is JobStatus.IN_PROGRESS else status.value
    return views.JobView(id=job_id, state=state)


async def dead(site: Site, query: queries.DeadQuery) -> views.DeadPage:
    """A page of dead letters, newest first."""
    letters = await site.queue.dead.list(limit=query.limit, offset=query.offset)
    return views.DeadPage([_dead_view(letter) for letter in letters], await site.queue.dead.count())


async def pauses(site: Site, _query: queries.Nothing) -> list[Pause]:
    """Functions and priorities whose jobs no worker claims, and how many due jobs wait for that."""
    return await site.queue.jobs.pauses.list()


async def workers(site: Site, _query: queries.Nothing) -> Sequence[WorkerRow]:
    """The workers of all machines: the live ones, then those that lapsed within about a minute."""
    fleet = await site.queue.jobs.fleet()
    return [*fleet.workers, *fleet.lapsed]


async def schedules(site: Site, _query: queries.Nothing) -> list[views.ScheduleView]:
    """The repeating jobs that clients registered, each with its next and its last run."""
    return [
        views.ScheduleView(
            each.schedule.id,
            each.schedule.job.name,
            Priority(each.schedule.job.priority).value,
            each.schedule.every_s,
            each.schedule.cron,
            each.next_at,
            each.last_at,
            each.last_job,
            each.last_outcome,
            each.is_on,
        )
        for each in await site.queue.jobs.schedule_states()
    ]


async def crons(site: Site, _query: queries.Nothing) -> list[CronState]:
    """The crons that workers have had, each with its next and its last tick, and whether it is off."""
    return await site.queue.jobs.switches.crons()


async def batches(site: Site, query: queries.BatchesQuery) -> list[views.BatchView]:
    """The newest LLM batches."""
    rows = await site.queue.llm.batches.list(limit=query.limit)
    return msgspec.convert(rows, list[views.BatchView])


async def batch(site: Site, query: queries.ById) -> views.BatchView:
    """One LLM batch."""
    return msgspec.convert(await site.queue.llm.batches.get(query.id), views.BatchView)


async def groups(site: Site, _query: queries.Nothing) -> list[views.GroupView]:
    """The LLM requests that wait for a batch, by group."""
    return msgspec.convert(await site.queue.llm.batches.groups(), list[views.GroupView])


async def group_history(site: Site, query: queries.GroupHistoryQuery) -> list[GroupHistory]:
    """How LLM requests ended, by provider, endpoint, model and time."""
    return await site.queue.llm.history.read(
        provider=given(query.provider),
        endpoint=given(query.endpoint),
        model=given(query.model),
        since=given(query.since),
        step=given(query.step),
    )


async def history(site: Site, query: queries.HistoryQuery) -> list[FunctionHistory]:
    """How jobs ended, by function, priority and time."""
    return await site.queue.history(
        function=given(query.function),
        priority=given(query.priority),
        since=given(query.since),
        step=given(query.step),
    )


async def audit(site: Site, query: queries.AuditQuery) -> AuditPage:
    """What operators changed."""
    return await site.queue.jobs.audit.page(limit=query.limit, cursor=query.cursor)


def _dead_view(letter: DeadLetter) -> views.DeadView:
    return views.DeadView(
        id=letter.id,
        function=letter.name,
        priority=letter.priority,
        reason=letter.reason,
        error=letter.error,
        tries=letter.tries,
        died_at=letter.died_at,
        bytes=len(letter.body),
    )


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}..."
