"""
The types of the API's queries and replies, where the facade's own are not enough.

The OpenAPI description is made of them, so a bound here is a bound there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cache.names import MAX_NAME
from worker.queue.history import Step
from worker.queue.priority import Priority
from worker.queue.rows import JobState
from worker.webhooks.endpoints import Endpoint
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


class JobView(msgspec.Struct, frozen=True):
    """
    One job, wherever it is. A dead one has `reason`, `error` and `died_at`.

    state: queued, deferred, running, parked, dead, or complete while its result is kept.
    args, kwargs: only with LETTA_WEB_SHOW_ARGUMENTS, as text.
    """

    id: str
    state: str
    function: str = ""
    priority: str = ""
    due_at: datetime | None = None
    enqueued_at: datetime | None = None
    tries: int = 0
    worker: str = ""
    bytes: int = 0
    reason: str = ""
    error: str = ""
    died_at: datetime | None = None
    args: list[str] | None = None
    kwargs: dict[str, str] | None = None


class DeadView(msgspec.Struct, frozen=True):
    """One dead letter. bytes: size of the job's body."""

    id: str
    function: str
    priority: str
    reason: str
    error: str
    tries: int
    died_at: datetime
    bytes: int


class DeadPage(msgspec.Struct, frozen=True):
    """A page of dead letters, and how many there are."""

    letters: list[DeadView]
    total: int


class ScheduleView(msgspec.Struct, frozen=True):
    """
    A repeating job: every so many seconds, or by a cron expression in UTC.

    last_job: the job of its last run, "" before the first. last_outcome: waits, runs, dead, or ended.
    is_on: false while it is switched off; it has no next_at then.
    """

    id: str
    function: str
    priority: str
    every_s: float | None
    cron: str | None
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_job: str = ""
    last_outcome: str = ""
    is_on: bool = True


class AttemptView(msgspec.Struct, frozen=True):
    """One attempt; `response` is the beginning of the receiver's answer."""

    time: datetime
    status: int | None
    error: str
    ms: float | None
    response: str


class DeliveryView(msgspec.Struct, frozen=True):
    """A webhook's delivery, as `queue.delivery(id)` describes it."""

    id: str
    url: str
    event_type: str
    state: DeliveryState
    created_at: datetime
    attempts: list[AttemptView]
    attempt_count: int
    uncharged_count: int
    next_attempt_at: datetime | None
    ended_at: datetime | None
    deadline: datetime | None
    status: int | None
    error: str
    remedy: str
    endpoint: str
    host: str
    endpoint_id: str | None
    ordering_key: str | None
    replays: int


class EndpointsView(msgspec.Struct, frozen=True):
    """Endpoints that fail, the latest failure first, and disabled ones; at most 1,000 of each."""

    failing: list[Endpoint]
    disabled: list[Endpoint]


class BatchView(msgspec.Struct, frozen=True):
    """An LLM batch. `error` says why an open one does not move."""

    id: str
    state: str
    provider: str
    endpoint: str
    model: str
    provider_id: str | None
    created_at: datetime
    requests: int
    succeeded: int
    failed: int
    moved: int
    outstanding: int
    bytes: int
    estimated_tokens: int
    usage: dict[str, int]
    billed_tokens: int
    ambiguous: int
    split_from: str | None
    provider_status: str | None
    error: str | None
    error_at: datetime | None


class GroupView(msgspec.Struct, frozen=True):
    """Requests that wait for a batch: their number, bytes and tokens, and what the group used."""

    provider: str
    endpoint: str
    model: str
    waiting: dict[str, int]
    usage: dict[str, int]


class Done(msgspec.Struct, frozen=True):
    """What became of an action. changed: False where there was nothing to do."""

    changed: bool
    message: str


class BulkDone(Done, frozen=True):
    """A step of many jobs. `cursor` gives the next step, with the same filters; "" after the last."""

    looked: int
    matched: int
    done: int
    cursor: str


class ErrorText(msgspec.Struct, frozen=True):
    """The class of an error, and a message that says what to do."""

    kind: str
    message: str


class Problem(msgspec.Struct, frozen=True):
    """Every reply that is not a success."""

    error: ErrorText


def given(value: Any) -> Any:
    """None for a parameter that was not given."""
    return None if value is UNSET else value
