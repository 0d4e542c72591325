"""
Webhook deliveries in Redis: one hash and one list of attempts each.

A delivery and its job are stored together. It has no expiry until it ends;
then it can be read, and replayed, for the retention that the settings name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cache.keys import MAX_WEBHOOK_ATTEMPTS, QueueKeys
from cache.scripts import load
from worker.effects.delivery_records import (
    SHOWN,
    Attempt,
    ClaimedDelivery,
    Delivery,
    EndedUnsent,
    HeldBack,
    claimed,
    delivery,
    encode_attempt,
    to_ms,
)
from worker.effects.queue import job_body
from worker.policy.delivery import DeliveryState, Verdict
from worker.policy.lanes import LaneLimits

__all__ = [
    "REPORT_WEBHOOK",
    "Attempt",
    "ClaimedDelivery",
    "Delivery",
    "DeliveryStore",
    "EndedUnsent",
    "HeldBack",
    "Selection",
]

_CREATE = load("worker.effects", "create_delivery")
_CLAIM = load("worker.effects", "claim_delivery")
_RECORD = load("worker.effects", "record_delivery")
_REPLAY = load("worker.effects", "replay_delivery")

# The job that tells a delivery's end to the function that was named for it.
REPORT_WEBHOOK = "report_webhook"
# Deliveries looked at in one round trip while some are selected.
_PAGE = 200


@dataclass(frozen=True, slots=True)
class Selection:
    """Which ended deliveries: all that are given must hold. `until` is exclusive."""

    states: tuple[DeliveryState, ...] = (DeliveryState.DEAD, DeliveryState.DISABLED)
    since: datetime | None = None
    until: datetime | None = None
    event_type: str | None = None
    url: str | None = None
    endpoint_id: str | None = None


class DeliveryStore:
    """Creates, claims, records, reads and replays deliveries through one client."""

    def __init__(self, client: Any, keys: QueueKeys, *, retention_s: float) -> None:
        self.client = client
        self.keys = keys
        self.retention_s = retention_s

    async def create(
        self,
        delivery_id: str,
        fields: Mapping[str, str | bytes | int],
        *,
        lane: str,
        order: str,
        job_keys: list[str],
        job_id: str,
        job_body: bytes,
        delay_ms: int,
    ) -> bool:
        """Store the delivery and its job; False when one of this id exists already."""
        flat = [part for pair in fields.items() for part in pair]
        keys = [self.keys.webhook(delivery_id), *job_keys]
        args = [self.keys.prefix, delivery_id, job_id, job_body, delay_ms, lane, order, *flat]
        return bool(await _CREATE.run(self.client, keys, args))

    async def claim(
        self, delivery_id: str, now: datetime, limits: LaneLimits, *, max_attempts: int = 10
    ) -> ClaimedDelivery | HeldBack | EndedUnsent | None:
        """Begin an attempt, or say why not; None when the delivery has ended or is unknown."""
        args = [
            self.keys.prefix,
            delivery_id,
            encode_attempt(Attempt(now, None, "interrupted", None)),
            MAX_WEBHOOK_ATTEMPTS,
            int(self.retention_s * 1000),
            _report(delivery_id, now),
            limits.concurrency,
            limits.rate_per_s,
            int(limits.slot_s * 1000),
            max_attempts,
        ]
        what, *rest = await _CLAIM.run(self.client, self._keys(delivery_id), args)
        if what == b"go":
            attempt, now_ms, flat = rest
            row = dict(zip(flat[::2], flat[1::2], strict=True))
            return claimed(delivery_id, attempt, now_ms, row)
        if what == b"wait":
            return HeldBack(rest[0] / 1000, rest[1].decode())
        if what == b"end":
            return EndedUnsent(DeliveryState(rest[0].decode()), rest[1].decode())
        return None

    async def record(
        self,
        delivery_id: str,
        number: int,
        attempt: Attempt,
        verdict: Verdict,
        limits: LaneLimits,
        *,
        draw: float,
    ) -> list[str]:
        """
        Write down how attempt `number` ended; nothing when a later one has begun.

        `draw` is a random number in [0, 1). Returns what it led to:
        circuit_opened, circuit_closed, endpoint_disabled.
        """
        args = [
            self.keys.prefix,
            delivery_id,
            number,
            verdict.state.value,
            encode_attempt(attempt),
            int(verdict.wait_s * 1000),
            int(self.retention_s * 1000),
            "" if attempt.status is None else attempt.status,
            attempt.error,
            int(verdict.charged),
            _report(delivery_id, attempt.time),
            verdict.host.value,
            int(verdict.slow_down),
            "" if verdict.pause_s is None else int(verdict.pause_s * 1000),
            verdict.endpoint.value,
            limits.concurrency,
            limits.breaker_failures,
            int(limits.open_s * 1000),
            int(limits.open_max_s * 1000),
            int(limits.disable_after_s * 1000),
            draw,
        ]
        _, *events = await _RECORD.run(self.client, self._keys(delivery_id), args)
        return [event.decode() for event in events]

    async def read(self, delivery_id: str) -> Delivery | None:
        """The delivery and its attempts, oldest first; None when unknown (any more)."""
        record, attempts = self._keys(delivery_id)
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.hmget(record, *SHOWN)
            pipe.lrange(attempts, 0, -1)
            values, rows = await pipe.execute()
        return delivery(delivery_id, dict(zip(SHOWN, values, strict=True)), rows)

    async def on_end(self, delivery_id: str) -> tuple[str, int] | None:
        """The function that is told of the end, and how often the delivery was replayed."""
        name, replays = await self.client.hmget(self.keys.webhook(delivery_id), "on_end", "replays")
        return None if name is None else (name.decode(), int(replays or 0))

    async def replay(
        self,
        delivery_id: str,
        *,
        token: str,
        job_keys: list[str],
        job_id: str,
        job_body: bytes,
        delay_ms: int,
        deadline_ms: int,
        secret: bytes,
    ) -> str:
        """Returns replayed, unknown, open, endpoint_disabled or secret_needed."""
        args = [self.keys.prefix, delivery_id, token, job_id, job_body, delay_ms, deadline_ms]
        keys = [*self._keys(delivery_id), *job_keys]
        found: bytes = await _REPLAY.run(self.client, keys, [*args, secret])
        return found.decode()

    async def select(self, wanted: Selection) -> AsyncIterator[str]:
        """Ids of the ended deliveries that are wanted, oldest end first within a state."""
        low = "-inf" if wanted.since is None else to_ms(wanted.since)
        high = "+inf" if wanted.until is None else f"({to_ms(wanted.until)}"
        for state in wanted.states:
            index, offset = self.keys.webhook_ended(state), 0
            while True:
                page = await self.client.zrange(
                    index, low, high, byscore=True, offset=offset, num=_PAGE
                )
                ids = [member.decode() for member in page]
                for id_ in await self._matching(ids, wanted):
                    yield id_
                if len(page) < _PAGE:
                    break
                # What was replayed meanwhile has left the index.
                left = await self.client.zmscore(index, page)
                offset += sum(score is not None for score in left)

    async def _matching(self, ids: list[str], wanted: Selection) -> list[str]:
        async with self.client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hmget(self.keys.webhook(id_), "event_type", "url", "endpoint_id")
            rows = await pipe.execute() if ids else []
        asked = (wanted.event_type, wanted.url, wanted.endpoint_id)
        return [
            id_
            for id_, row in zip(ids, rows, strict=True)
            if row[0] is not None
            and all(a is None or (b or b"").decode() == a for a, b in zip(asked, row, strict=True))
        ]

    def _keys(self, delivery_id: str) -> list[str]:
        return [self.keys.webhook(delivery_id), self.keys.webhook_attempts(delivery_id)]


def _report(delivery_id: str, now: datetime) -> bytes:
    return job_body(REPORT_WEBHOOK, [delivery_id], {}, now_ms=to_ms(now))
