"""Turns reads and actions into HTTP: decodes what was given, names every error in the reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import msgspec.inspect
from msgspec.structs import fields
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cache.usage import CacheUsage
from worker.errors import (
    EnqueueRefused,
    InvalidArgument,
    NotFound,
    QueueFull,
    QueueMemoryFull,
    QueueUnavailable,
    WorkerError,
)
from worker.llm.history import GroupHistory
from worker.queue.audit import AuditPage
from worker.queue.fleet import WorkerRow
from worker.queue.history import FunctionHistory
from worker.queue.listing import JobPage
from worker.queue.overview import Overview
from worker.queue.pauses import Pause
from worker.queue.switches import CronState
from worker.web.access import Refused
from worker.web.api import queries, reads, views, webhook_reads
from worker.web.api.actions import ACTIONS
from worker.web.api.performing import Action, perform, require_operator
from worker.web.bearer import headers_of, visitor_of
from worker.web.site import Site
from worker.webhooks.endpoints import Endpoint
from worker.webhooks.history import EndpointHistory

LIMIT_S = 20.0
MOST_BODY = 65_536
# As `Accept` of a request and in the reply.
JSON = "application/json"
# One more than the longest number that any parameter accepts: a longer one is refused as well.
_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Read:
    """A GET: its path below /api/, its parameters, and the type of its reply."""

    path: str
    run: Callable[[Site, Any], Awaitable[Any]]
    query: type[queries.Query]
    reply: Any

    @property
    def summary(self) -> str:
        return (self.run.__doc__ or "").strip()


READS = (
    Read("overview", reads.overview, queries.Nothing, Overview),
    Read("stats", reads.stats, queries.Nothing, dict[str, dict[str, float]]),
    Read("cache", reads.cache, queries.Nothing, CacheUsage),
    Read("jobs", reads.jobs, queries.JobsQuery, JobPage),
    Read("job", reads.job, queries.ById, views.JobView),
    Read("dead", reads.dead, queries.DeadQuery, views.DeadPage),
    Read("pauses", reads.pauses, queries.Nothing, list[Pause]),
    Read("workers", reads.workers, queries.Nothing, list[WorkerRow]),
    Read("schedules", reads.schedules, queries.Nothing, list[views.ScheduleView]),
    Read("crons", reads.crons, queries.Nothing, list[CronState]),
    Read("endpoints", webhook_reads.endpoints, queries.Nothing, views.EndpointsView),
    Read("endpoint", webhook_reads.endpoint, queries.ByEndpoint, Endpoint),
    Read(
        "endpoints/history",
        webhook_reads.endpoint_history,
        queries.EndpointHistoryQuery,
        list[EndpointHistory],
    ),
    Read("deliveries", webhook_reads.deliveries, queries.DeliveriesQuery, list[views.DeliveryView]),
    Read("delivery", webhook_reads.delivery, queries.ById, views.DeliveryView),
    Read("batches", reads.batches, queries.BatchesQuery, list[views.BatchView]),
    Read("batch", reads.batch, queries.ById, views.BatchView),
    Read("llm/groups", reads.groups, queries.Nothing, list[views.GroupView]),
    Read("llm/history", reads.group_history, queries.GroupHistoryQuery, list[GroupHistory]),
    Read("history", reads.history, queries.HistoryQuery, list[FunctionHistory]),
    Read("audit", reads.audit, queries.AuditQuery, AuditPage),
)


def api_routes(site: Site) -> list[Route]:
    """Build the routes of all reads and actions."""
    found = [Route(f"/api/{read.path}", _reading(site, read), methods=["GET"]) for read in READS]
    found += [
        Route(f"/api/{action.path}", _acting(site, action), methods=["POST"])
        for action in ACTIONS.values()
    ]
    return found


def _reading(site: Site, read: Read) -> Callable[[Request], Awaitable[Response]]:
    async def work(request: Request) -> Any:
        visitor_of(site, request)
        return await read.run(site, decode(request.query_params.multi_items(), read.query))

    return answering(work)


def _acting(site: Site, action: Action) -> Callable[[Request], Awaitable[Response]]:
    async def work(request: Request) -> Any:
        visitor = visitor_of(site, request)
        require_operator(visitor)
        # A page of another site cannot send this type without being asked first.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise Refused(415, f"send {JSON}")
        target = msgspec.json.decode(await read_body(request), type=action.target)
        return await perform(site, visitor, action, target)

    return answering(work)


def answering(
    work: Callable[[Request], Awaitable[Any]],
) -> Callable[[Request], Awaitable[Response]]:
    """Answer with what `work` returns as JSON, or with its error and the status of that."""

    async def endpoint(request: Request) -> Response:
        try:
            async with asyncio.timeout(LIMIT_S):
                return json_reply(await work(request))
        except (Refused, WorkerError, msgspec.MsgspecError, TimeoutError) as exc:
            status, kind, message = problem_of(exc)
            problem = views.Problem(views.ErrorText(kind, message))
            headers = headers_of(exc) if isinstance(exc, Refused) else {}
            return json_reply(problem, status, headers)

    return endpoint


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode(value)
    return Response(
        body, status, {"content-type": JSON, "cache-control": "no-store", **(headers or {})}
    )


def problem_of(exc: Exception) -> tuple[int, str, str]:
    """Status, kind and text of an error."""
    kind = type(exc).__name__
    if isinstance(exc, Refused):
        return exc.status, kind, str(exc)
    if isinstance(exc, NotFound):
        return 404, kind, str(exc)
    if isinstance(exc, QueueUnavailable | QueueMemoryFull | QueueFull):
        return 503, kind, str(exc)
    if isinstance(exc, InvalidArgument | msgspec.MsgspecError):
        return 400, "InvalidArgument", str(exc)
    if isinstance(exc, TimeoutError) and not isinstance(exc, WorkerError):
        return 503, "QueueUnavailable", f"the queue's server did not answer within {LIMIT_S:g} s"
    return (400 if isinstance(exc, EnqueueRefused) else 409), kind, str(exc)


async def read_body(request: Request) -> bytes:
    """
    Raises:
        Refused: it is longer than any call needs.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY:
            raise Refused(413, f"the body has more than {MOST_BODY} bytes")
    return body


def decode(pairs: Sequence[tuple[str, str]], wanted: type[queries.Query]) -> Any:
    """
    What a call accepts, from parameters in the form of text.

    Raises:
        InvalidArgument, msgspec.ValidationError: a parameter was given twice, or is not valid.
    """
    found: dict[str, Any] = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidArgument("a parameter was given twice")
    for name in _whole_numbers(wanted) & set(found):
        if found[name].isascii() and found[name].isdigit():
            found[name] = int(found[name][:_MOST_DIGITS])
    # Otherwise strict: msgspec would take 0.5 as a time, and null as a missing parameter.
    return msgspec.convert(found, wanted)


@cache
def _whole_numbers(query: type[queries.Query]) -> frozenset[str]:
    types = {each.name: msgspec.inspect.type_info(each.type) for each in fields(query)}
    return frozenset(
        name for name, type_ in types.items() if isinstance(type_, msgspec.inspect.IntType)
    )
