"""
Webhook deliveries in Redis: one hash and one list of attempts each.

A delivery and its job are stored together. It has no expiry until it ends;
then it can be read for the retention that the settings name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cache import codec
from cache.keys import MAX_WEBHOOK_ATTEMPTS, QueueKeys
from cache.scripts import load
from worker.policy.delivery import DeliveryState

_CREATE = load("worker.effects", "create_delivery")
_CLAIM = load("worker.effects", "claim_delivery")
_RECORD = load("worker.effects", "record_delivery")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: `error` is "interrupted" where a crash cut it off before it was recorded."""

    time: datetime
    status: int | None
    error: str
    ms: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "time": self.time.isoformat()}


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as `queue.delivery(id)` shows it. `attempt_count` counts beyond what is kept."""

    id: str
    url: str
    event_type: str
    state: DeliveryState
    created_at: datetime
    attempts: tuple[Attempt, ...]
    attempt_count: int
    next_attempt_at: datetime | None
    ended_at: datetime | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "url": self.url,
            "event_type": self.event_type,
            "state": self.state.value,
            "created_at": self.created_at.isoformat(),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "attempt_count": self.attempt_count,
            "next_attempt_at": _iso(self.next_attempt_at),
            "ended_at": _iso(self.ended_at),
        }


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """What a worker needs for one attempt; `secret` is sealed as it was stored."""

    id: str
    attempt: int
    url: str
    event_type: str
    body: bytes
    secret: bytes | None


class DeliveryStore:
    """Creates, claims, records and reads deliveries through one client."""

    def __init__(self, client: Any, keys: QueueKeys, *, retention_s: float) -> None:
        self.client = client
        self.keys = keys
        self.retention_s = retention_s

    async def create(
        self,
        delivery_id: str,
        fields: Mapping[str, str | bytes],
        *,
        job_keys: list[str],
        job_id: str,
        job_body: bytes,
        delay_ms: int,
    ) -> bool:
        """Store the delivery and its job; False when one of this id exists already."""
        flat = [part for pair in fields.items() for part in pair]
        keys = [self.keys.webhook(delivery_id), *job_keys]
        return bool(await _CREATE.run(self.client, keys, [job_id, job_body, delay_ms, *flat]))

    async def claim(self, delivery_id: str, now: datetime) -> ClaimedDelivery | None:
        """Begin an attempt; None when the delivery has ended or is unknown."""
        begun = codec.encode([_ms(now), None, "interrupted", None])
        found = await _CLAIM.run(
            self.client, self._keys(delivery_id), [begun, MAX_WEBHOOK_ATTEMPTS]
        )
        if not found:
            return None
        attempt, flat = found
        row = dict(zip(flat[::2], flat[1::2], strict=True))
        return ClaimedDelivery(
            id=delivery_id,
            attempt=attempt,
            url=row[b"url"].decode(),
            event_type=row[b"event_type"].decode(),
            body=row[b"body"],
            secret=row.get(b"secret"),
        )

    async def record(
        self,
        delivery_id: str,
        number: int,
        attempt: Attempt,
        state: DeliveryState,
        *,
        wait_s: float,
    ) -> bool:
        """Write down how attempt `number` ended; False when a later one has begun."""
        record = codec.encode([_ms(attempt.time), attempt.status, attempt.error, attempt.ms])
        args = [
            number,
            state.value,
            record,
            int(wait_s * 1000),
            int(self.retention_s * 1000),
            "" if attempt.status is None else attempt.status,
            attempt.error,
        ]
        return bool(await _RECORD.run(self.client, self._keys(delivery_id), args))

    async def read(self, delivery_id: str) -> Delivery | None:
        """The delivery and its attempts, oldest first; None when unknown (any more)."""
        record, attempts = self._keys(delivery_id)
        async with self.client.pipeline(transaction=True) as pipe:
            # The body and the sealed secret stay where they are.
            names = ("url", "event_type", "state", "created", "attempts", "next", "ended")
            pipe.hmget(record, *names)
            pipe.lrange(attempts, 0, -1)
            values, rows = await pipe.execute()
        row = dict(zip(names, values, strict=True))
        if row["state"] is None:
            return None
        return Delivery(
            id=delivery_id,
            url=row["url"].decode(),
            event_type=row["event_type"].decode(),
            state=DeliveryState(row["state"].decode()),
            created_at=_datetime(int(row["created"])),
            attempts=tuple(_attempt(data) for data in rows),
            attempt_count=int(row["attempts"]),
            next_attempt_at=_datetime(int(row["next"])) if row["next"] else None,
            ended_at=_datetime(int(row["ended"])) if row["ended"] else None,
        )

    def _keys(self, delivery_id: str) -> list[str]:
        return [self.keys.webhook(delivery_id), self.keys.webhook_attempts(delivery_id)]


def _attempt(data: bytes) -> Attempt:
    time, status, error, ms = codec.decode(data)
    return Attempt(_datetime(time), status, error, ms)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _datetime(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
