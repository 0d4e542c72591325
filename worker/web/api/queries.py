"""The types of the API's queries. The OpenAPI description is made of them: a bound here is a bound there."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cache.names import MAX_NAME
from worker.queue.history import Step
from worker.queue.priority import Priority
from worker.queue.rows import JobState
from worker.webhooks.policy import DeliveryState

_PRINTED = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
Id = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=_PRINTED)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=_PRINTED)]
Model = Annotated[str, Meta(min_length=1, max_length=256, pattern=_PRINTED)]
EndpointName = Annotated[str, Meta(min_length=1, max_length=2048)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
JobCursor = Annotated[
    str, Meta(max_length=3136, pattern=r"^([0-3]:[0-9]{1,16}\.[0-9]:[A-Za-z0-9_.~%-]+)?$")
]
# Of lists whose places move little: how many rows were before.
Offset = Annotated[int, Meta(ge=0, le=10_000_000)]
AuditCursor = Annotated[str, Meta(pattern=r"^([1-9][0-9]{0,17}-[0-9]{1,18})?$")]
Moment = Annotated[datetime, Meta(tz=True)]


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what a call accepts: query parameters of a GET, the JSON body of a POST."""


class Nothing(Query, frozen=True):
    """No parameters."""


class ById(Query, frozen=True):
    """One thing by its id."""

    id: Id


class ByEndpoint(Query, frozen=True):
    """An endpoint by the URL of its webhooks, or by their `endpoint_id`."""

    name: EndpointName


class ByFunction(Query, frozen=True):
    """A function by its name."""

    function: Annotated[str, Meta(min_length=1, max_length=256, pattern=_PRINTED)]


class ByPriority(Query, frozen=True):
    """One of the four priorities."""

    priority: Priority


class JobsQuery(Query, frozen=True):
    """Filters combine. `cursor` goes on where a page ended, with the same filters."""

    state: JobState | UnsetType = UNSET
    function: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    limit: Limit = 100
    cursor: JobCursor = ""


class BulkQuery(Query, frozen=True, kw_only=True):
    """
    What to change: everything that matches all filters. `cursor` goes on where a step ended.

    min_age_s: since the enqueue, of a dead letter since its death. arguments: place or dotted path ->
    text; only with LETTA_WEB_SHOW_ARGUMENTS.
    """

    dry_run: bool = False
    function: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    id_prefix: Name | UnsetType = UNSET
    min_tries: Annotated[float, Meta(ge=0, le=1_000_000, multiple_of=1)] = 0
    min_age_s: Annotated[float, Meta(ge=0, le=300_000_000)] = 0.0
    arguments: Annotated[dict[str, str], Meta(max_length=16)] = {}
    cursor: JobCursor = ""


class BulkJobs(BulkQuery, frozen=True, kw_only=True):
    """Jobs that have not ended. Without a state, `run` means the deferred ones."""

    action: Literal["cancel", "run"]
    state: JobState | UnsetType = UNSET


class BulkDead(BulkQuery, frozen=True, kw_only=True):
    """Dead letters. error: a part of their reason or error, in any case."""

    action: Literal["retry", "delete"]
    error: Name | UnsetType = UNSET


class NewJob(Query, frozen=True):
    """A job by hand. Nothing checks whether a worker has the function: an unknown one is parked."""

    function: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:<>-]{1,256}$")]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    priority: Priority = Priority.DEFAULT
    job_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] | UnsetType = UNSET
    delay_s: Annotated[float, Meta(ge=0, le=31_622_400)] = 0.0


class DeadQuery(Query, frozen=True):
    """A page of dead letters, newest first."""

    limit: Limit = 100
    offset: Offset = 0


class DeliveriesQuery(Query, frozen=True):
    """Deliveries in a state; `since` and `until` are about their end, of open ones their creation."""

    state: DeliveryState | UnsetType = UNSET
    event_type: Name | UnsetType = UNSET
    since: Moment | UnsetType = UNSET
    until: Moment | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


class BatchesQuery(Query, frozen=True):
    """The newest batches."""

    limit: Limit = 50


class HistoryQuery(Query, frozen=True):
    """By default the last hour by minutes; hours where `since` is more than a day ago."""

    function: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    since: Moment | UnsetType = UNSET
    step: Step | UnsetType = UNSET


class EndpointHistoryQuery(Query, frozen=True):
    """Of one endpoint, or of each; the time as for the history of jobs."""

    name: EndpointName | UnsetType = UNSET
    since: Moment | UnsetType = UNSET
    step: Step | UnsetType = UNSET


class GroupHistoryQuery(Query, frozen=True):
    """Of the LLM groups that the filters mean; the time as for the history of jobs."""

    provider: Name | UnsetType = UNSET
    endpoint: Name | UnsetType = UNSET
    model: Model | UnsetType = UNSET
    since: Moment | UnsetType = UNSET
    step: Step | UnsetType = UNSET


class AuditQuery(Query, frozen=True):
    """A page of what operators changed, newest first."""

    limit: Limit = 100
    cursor: AuditCursor = ""


def given(value: Any) -> Any:
    """None for a parameter that was not given."""
    return None if value is UNSET else value
