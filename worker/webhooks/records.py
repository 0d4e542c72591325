"""Defines what is read of a webhook delivery, and how it is encoded in Redis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from cache.encoding import codec
from cache.errors import CodecError
from worker.errors import Undecodable
from worker.numbers import whole
from worker.webhooks.headers import check_headers
from worker.webhooks.policy import DeliveryState

# Body, headers and sealed secrets are left out: callers never see them again.
SHOWN = (
    "url", "event_type", "state", "created", "attempts", "next", "ended", "deadline", "replays",
    "status", "error", "endpoint", "host", "endpoint_id", "ordering_key", "on_end", "uncharged",
)  # fmt: skip
# What an operator can change about an error.
REMEDIES = {
    "target_forbidden": (
        "workers may not reach this address or port: allow it with LETTA_WEBHOOK_ALLOW_CIDRS, "
        "LETTA_WEBHOOK_ALLOW_HOSTS or LETTA_WEBHOOK_PORTS"
    ),
    "secret_unusable": "give the workers the client's LETTA_WEBHOOK_ENCRYPTION_KEY",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    One attempt. `error` is "interrupted" when the worker died before it recorded the
    outcome; `response` is the beginning of the response body.
    """

    time: datetime
    status: int | None
    error: str
    ms: float | None
    response: bytes = b""

    def to_dict(self) -> dict[str, Any]:
        text = self.response.decode("utf-8", "replace")
        return {**asdict(self), "time": self.time.isoformat(), "response": text}


@dataclass(frozen=True, slots=True)
class Delivery:
    """
    A delivery, as `queue.delivery(id)` returns it.

    `attempt_count` counts all attempts, including those no longer kept and those
    before a replay. `uncharged_count` of them were our own side's failures or came
    before the last replay. `status` and `error` are those of the last attempt, or the
    reason why the delivery ended without one; `remedy` says what to change, if anything.
    `url` is `***` where it is sealed and LETTA_WEBHOOK_ENCRYPTION_KEY cannot open it.
    """

    id: str
    url: str
    event_type: str
    state: DeliveryState
    created_at: datetime
    attempts: tuple[Attempt, ...]
    attempt_count: int
    next_attempt_at: datetime | None
    ended_at: datetime | None
    deadline: datetime | None = None
    status: int | None = None
    error: str = ""
    endpoint: str = ""
    host: str = ""
    endpoint_id: str | None = None
    ordering_key: str | None = None
    replays: int = 0
    uncharged_count: int = 0

    @property
    def remedy(self) -> str:
        """The setting that allows what was refused; empty for other errors."""
        return REMEDIES.get(self.error, "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "url": self.url,
            "event_type": self.event_type,
            "state": self.state.value,
            "created_at": self.created_at.isoformat(),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "attempt_count": self.attempt_count,
            "uncharged_count": self.uncharged_count,
            "next_attempt_at": _iso(self.next_attempt_at),
            "ended_at": _iso(self.ended_at),
            "deadline": _iso(self.deadline),
            "status": self.status,
            "error": self.error,
            "remedy": self.remedy,
            "endpoint": self.endpoint,
            "host": self.host,
            "endpoint_id": self.endpoint_id,
            "ordering_key": self.ordering_key,
            "replays": self.replays,
        }


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """
    What a worker needs for one attempt. `attempt` counts all attempts and is the fencing
    token; `charged` counts those that the policy counts; `secret` and, with a keyring, `url`
    are sealed. `wait_s`: since when the attempt was due.
    """

    id: str
    attempt: int
    charged: int
    internal_failures: int
    url: str | bytes = field(repr=False)
    event_type: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    secret: bytes | None = field(repr=False)
    left_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class Throttled:
    """No attempt is allowed now: `reason` is ordered, closed, probing, busy, host_busy, rate or early."""

    wait_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class EndedUnsent:
    """The delivery ended without this attempt: by its deadline, its limit or a disabled endpoint."""

    state: DeliveryState
    reason: str


class UnreadableDelivery(Undecodable):
    """Its fields are not what `send_webhook` stores; `attempt` was begun all the same."""

    def __init__(self, delivery_id: str, attempt: int) -> None:
        super().__init__(f"delivery {delivery_id!r} cannot be read back")
        self.attempt = attempt


def claimed(delivery_id: str, go: Sequence[Any]) -> ClaimedDelivery:
    """
    From what follows `go` in the reply of attempt_deliveries.lua.

    Raises:
        UnreadableDelivery: somebody has changed its fields.
    """
    attempt, now_ms, wait_ms, url, event_type, body, headers, secret, deadline, *counts = go
    uncharged, internal_failures = counts
    try:
        if body is None:
            raise ValueError("it has no body")
        return ClaimedDelivery(
            id=delivery_id,
            attempt=attempt,
            charged=attempt - whole(uncharged, most=attempt),
            internal_failures=whole(internal_failures),
            url=url if url.startswith(b"\0") else url.decode(),
            event_type=event_type.decode(),
            body=body,
            headers=check_headers(codec.decode(headers)) if headers else {},
            secret=secret,
            left_s=math.inf if deadline is None else (float(deadline) - now_ms) / 1000,
            wait_s=wait_ms / 1000,
        )
    except (AttributeError, TypeError, ValueError, CodecError):
        raise UnreadableDelivery(delivery_id, attempt) from None


def delivery(
    delivery_id: str, url: str, row: Mapping[str, bytes | None], attempts: list[bytes]
) -> Delivery | None:
    """Build it from its URL, the fields SHOWN and its attempts; None when it does not exist."""
    if row["state"] is None:
        return None
    return Delivery(
        id=delivery_id,
        url=url,
        event_type=_text(row["event_type"]) or "",
        state=DeliveryState(row["state"].decode()),
        created_at=to_datetime(int(row["created"] or 0)),
        attempts=tuple(decode_attempt(data) for data in attempts),
        attempt_count=int(row["attempts"] or 0),
        next_attempt_at=_moment(row["next"]),
        ended_at=_moment(row["ended"]),
        deadline=_moment(row["deadline"]),
        status=int(row["status"]) if row["status"] else None,
        error=_text(row["error"]) or "",
        endpoint=_text(row["endpoint"]) or "",
        host=_text(row["host"]) or "",
        endpoint_id=_text(row["endpoint_id"]),
        ordering_key=_text(row["ordering_key"]),
        replays=int(row["replays"] or 0),
        uncharged_count=int(row["uncharged"] or 0),
    )


def encode_attempt(attempt: Attempt) -> bytes:
    return codec.encode_row(
        [to_ms(attempt.time), attempt.status, attempt.error, attempt.ms, attempt.response]
    )


def decode_attempt(data: bytes) -> Attempt:
    time, status, error, ms, response = codec.decode(data)
    return Attempt(to_datetime(time), status, error, ms, response)


def to_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def to_datetime(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _moment(value: bytes | None) -> datetime | None:
    return to_datetime(int(value)) if value else None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
