"""The pages: what each one asks, by the reads of the API, and which template shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from worker.errors import NotFound
from worker.queue.priority import Priority
from worker.queue.rows import JobState
from worker.web.api import queries, reads, webhook_reads
from worker.web.page import activity, many
from worker.web.site import Site
from worker.webhooks.policy import DeliveryState

_ROWS = 50


class DeadLettersPage(queries.DeadQuery, frozen=True):
    """As the API's, with fewer letters at a time."""

    limit: queries.Limit = _ROWS


class JobsPage(queries.JobsQuery, frozen=True):
    """As the API's, with fewer jobs at a time."""

    limit: queries.Limit = _ROWS


class Search(queries.Query, frozen=True):
    """An id, or nothing yet."""

    id: Annotated[str, Meta(max_length=queries.MAX_NAME)] = ""


async def jobs(site: Site, query: JobsPage) -> dict[str, Any]:
    return {
        "page": await reads.jobs(site, query),
        "filters": _given(query, "state", "function", "priority"),
        "states": list(JobState),
        "priorities": list(Priority),
        "is_first": query.cursor == "",
    }


async def job(site: Site, query: queries.ById) -> dict[str, Any]:
    return {"job": await reads.job(site, query), "shows_arguments": site.show_arguments}


async def search(site: Site, query: Search) -> dict[str, Any]:
    """A job or a delivery by its id, for the search field."""
    id_ = query.id.strip()
    found: dict[str, str] = {}
    if id_:
        by_id = queries.ById(id_)
        for path, read in (
            ("/job", reads.job),
            ("/delivery", webhook_reads.delivery),
            ("/batch", reads.batch),
        ):
            try:
                await read(site, by_id)
            except NotFound:
                continue
            found[path] = id_
    return {"id": id_, "found": found}


async def dead(site: Site, query: DeadLettersPage) -> dict[str, Any]:
    page = await reads.dead(site, query)
    end = query.offset + len(page.letters)
    return {
        "page": page,
        "first": query.offset + 1,
        "last": end,
        "newer": max(0, query.offset - query.limit) if query.offset else None,
        "older": end if end < page.total and page.letters else None,
    }


async def workers(site: Site, query: queries.Nothing) -> dict[str, Any]:
    return {"workers": await reads.workers(site, query)}


async def schedules(site: Site, query: queries.Nothing) -> dict[str, Any]:
    return {
        "schedules": await reads.schedules(site, query),
        "crons": await reads.crons(site, query),
    }


async def pauses(site: Site, query: queries.Nothing) -> dict[str, Any]:
    return {"pauses": await reads.pauses(site, query), "priorities": list(Priority)}


async def endpoints(site: Site, query: queries.Nothing) -> dict[str, Any]:
    return {"endpoints": await webhook_reads.endpoints(site, query)}


async def deliveries(site: Site, query: queries.DeliveriesQuery) -> dict[str, Any]:
    return {
        "deliveries": await webhook_reads.deliveries(site, query),
        "filters": _given(query, "state", "event_type"),
        "states": list(DeliveryState),
        "limit": query.limit,
    }


async def delivery(site: Site, query: queries.ById) -> dict[str, Any]:
    return {"delivery": await webhook_reads.delivery(site, query)}


async def batch(site: Site, query: queries.ById) -> dict[str, Any]:
    return {"batch": await reads.batch(site, query)}


async def audit(site: Site, query: queries.AuditQuery) -> dict[str, Any]:
    return {"page": await reads.audit(site, query), "is_first": query.cursor == ""}


@dataclass(frozen=True, slots=True)
class Page:
    """
    One page: what it shows below which path.

    template: its name without ".html". label: in the navigation; "" for none.
    """

    path: str
    template: str
    label: str
    run: Callable[[Site, Any], Awaitable[dict[str, Any]]]
    query: type[queries.Query]


PAGES = (
    Page("/", "overview", "Overview", activity.overview, queries.Nothing),
    Page("/jobs", "jobs", "Jobs", jobs, JobsPage),
    Page("/job", "job", "", job, queries.ById),
    Page("/search", "search", "", search, Search),
    Page("/change", "change", "", many.count, many.ChangeQuery),
    Page("/dead", "dead", "Dead letters", dead, DeadLettersPage),
    Page("/workers", "workers", "Workers", workers, queries.Nothing),
    Page("/schedules", "schedules", "Schedules", schedules, queries.Nothing),
    Page("/pauses", "pauses", "Pauses", pauses, queries.Nothing),
    Page("/endpoints", "endpoints", "Endpoints", endpoints, queries.Nothing),
    Page("/endpoint", "endpoint", "", activity.endpoint, activity.EndpointRange),
    Page("/deliveries", "deliveries", "Deliveries", deliveries, queries.DeliveriesQuery),
    Page("/delivery", "delivery", "", delivery, queries.ById),
    Page("/batches", "batches", "LLM batches", activity.batches, queries.BatchesQuery),
    Page("/batch", "batch", "", batch, queries.ById),
    Page("/group", "group", "", activity.group, activity.GroupQuery),
    Page("/history", "history", "History", activity.history, activity.Range),
    Page("/audit", "audit", "Audit trail", audit, queries.AuditQuery),
)


def _given(query: queries.Query, *names: str) -> dict[str, str]:
    return {name: str(queries.given(getattr(query, name)) or "") for name in names}
