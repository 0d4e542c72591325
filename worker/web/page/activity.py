"""Collects recent activity: what the overview and the history show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from worker.llm.history import GroupHistory
from worker.queue.history import FunctionHistory, Step
from worker.queue.series import Times
from worker.web.api import queries, reads, webhook_reads
from worker.web.page.charts import ATTEMPT_NAMES, REQUEST_NAMES, Timeline, quantile, summed
from worker.web.site import Site

_HOUR = 3600


RangeName = Literal["1h", "6h", "24h", "7d", "30d"]


class Range(queries.Query, frozen=True):
    """The time that charts show, of one function or of all."""

    function: queries.Name | UnsetType = UNSET
    range: RangeName = "1h"


class EndpointRange(queries.ByEndpoint, frozen=True):
    """An endpoint, and the time that its charts show."""

    range: RangeName = "24h"


class GroupQuery(queries.Query, frozen=True):
    """An LLM group, and the time that its charts show."""

    provider: queries.Name
    endpoint: queries.Name
    model: queries.Model
    range: RangeName = "24h"


# Seconds that a range has, seconds of one step of its charts, and the step that is read.
_RANGES: dict[RangeName, tuple[int, int, Step]] = {
    "1h": (_HOUR, 60, "minute"),
    "6h": (6 * _HOUR, 300, "minute"),
    "24h": (24 * _HOUR, _HOUR, "hour"),
    "7d": (7 * 24 * _HOUR, 3 * _HOUR, "hour"),
    "30d": (30 * 24 * _HOUR, 12 * _HOUR, "hour"),
}


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """What one function did in the last hour."""

    name: str
    completed: int
    retried: int
    dead: int
    wait: str
    run: str


async def overview(site: Site, _query: queries.Nothing) -> dict[str, Any]:
    now_s = int(time.time())
    timeline = Timeline(now_s - _HOUR, now_s, 60)
    # The hour that ends now, of every function: one read.
    found = await reads.history(site, queries.HistoryQuery())
    timeline.add(found)
    nothing = queries.Nothing()
    return {
        "counts": await reads.overview(site, nothing),
        "fleet": await site.queue.jobs.fleet(),
        "pauses": await reads.pauses(site, nothing),
        "functions": _by_function(found),
        "charts": timeline.charts(),
        "cache": await reads.cache_if_there(site),
    }


async def history(site: Site, query: Range) -> dict[str, Any]:
    timeline, since, step = _timeline(query.range)
    wanted = queries.given(query.function)
    names = sorted({each.function for each in await site.queue.jobs.history.totals()})
    # One function after the other: 30 days of all together would take much memory.
    for name in names if wanted is None else [wanted]:
        timeline.add(await reads.history(site, queries.HistoryQuery(name, since=since, step=step)))
    return {
        "charts": timeline.charts(),
        "function": wanted or "",
        "functions": names,
        "range": query.range,
        "ranges": list(_RANGES),
    }


async def endpoint(site: Site, query: EndpointRange) -> dict[str, Any]:
    timeline, since, step = _timeline(query.range)
    wanted = queries.EndpointHistoryQuery(query.name, since=since, step=step)
    timeline.add(await webhook_reads.endpoint_history(site, wanted))
    return {
        "endpoint": await webhook_reads.endpoint(site, queries.ByEndpoint(query.name)),
        "asked": query.name,
        "charts": timeline.charts("Delivered webhooks", ATTEMPT_NAMES),
        "range": query.range,
        "ranges": list(_RANGES),
    }


async def batches(site: Site, query: queries.BatchesQuery) -> dict[str, Any]:
    nothing = queries.Nothing()
    lately = await reads.group_history(site, queries.GroupHistoryQuery())
    return {
        "batches": await reads.batches(site, query),
        "groups": await reads.groups(site, nothing),
        "lately": [_group_row(each) for each in lately if each.counts],
        "limit": query.limit,
    }


async def group(site: Site, query: GroupQuery) -> dict[str, Any]:
    timeline, since, step = _timeline(query.range)
    names = (query.provider, query.endpoint, query.model)
    wanted = queries.GroupHistoryQuery(*names, since=since, step=step)
    timeline.add(await reads.group_history(site, wanted))
    return {
        "asked": query,
        "charts": timeline.charts("Answered requests", REQUEST_NAMES),
        "range": query.range,
        "ranges": list(_RANGES),
    }


def _timeline(range_: RangeName) -> tuple[Timeline, datetime, Step]:
    """An empty timeline, its beginning, and the step that is read for it."""
    length_s, step_s, step = _RANGES[range_]
    now_s = int(time.time())
    since = datetime.now(UTC) - timedelta(seconds=length_s)
    return Timeline(now_s - length_s, now_s, step_s), since, step


def _group_row(found: GroupHistory) -> dict[str, Any]:
    counts = found.counts
    return {
        "group": {name: getattr(found, name) for name in ("provider", "endpoint", "model")},
        "counts": counts,
        "wait": quantile(counts.wait, 0.95),
        "run": quantile(counts.run, 0.95),
    }


def _by_function(found: Sequence[FunctionHistory]) -> list[FunctionRow]:
    by_name: dict[str, list[FunctionHistory]] = {}
    for each in found:
        if each.counts:
            by_name.setdefault(each.function, []).append(each)
    return [_function_row(name, rows) for name, rows in sorted(by_name.items())]


def _function_row(name: str, rows: Sequence[FunctionHistory]) -> FunctionRow:
    def total(outcome: str) -> int:
        return sum(getattr(each.counts, outcome) for each in rows)

    def times(kind: str) -> Times:
        return summed(getattr(each.counts, kind) for each in rows)

    return FunctionRow(
        name,
        total("completed"),
        total("retried"),
        total("dead"),
        quantile(times("wait"), 0.95),
        quantile(times("run"), 0.95),
    )
