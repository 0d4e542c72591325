"""The types of the API's replies, where the facade's own are not enough."""

from __future__ import annotations

from datetime import datetime

import msgspec

from worker.webhooks.endpoints import Endpoint
from worker.webhooks.policy import DeliveryState


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
