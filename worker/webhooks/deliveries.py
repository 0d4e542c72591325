"""
Stores webhook deliveries in Redis: one hash and one list of attempts each.

A delivery and its job are stored together. A delivery has no expiry until it
ends; then it can be read and replayed for LETTA_WEBHOOK_RETENTION_S.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cache.connection.scripts import load
from worker.keys import QueueKeys
from worker.webhooks.policy import DeliveryState
from worker.webhooks.records import SHOWN, Delivery, delivery, to_ms

__all__ = ["Delivery", "DeliveryStore", "Selection"]

_CREATE = load(__package__, "create_delivery", "..queue")
_REPLAY = load(__package__, "replay_delivery", "..queue")

# Deliveries read in one round trip of a selection.
_PAGE = 200


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects ended deliveries that match all given fields. `until` is exclusive."""

    states: tuple[DeliveryState, ...] = (DeliveryState.DEAD, DeliveryState.DISABLED)
    since: datetime | None = None
    until: datetime | None = None
    event_type: str | None = None
    url: str | None = None
    endpoint_id: str | None = None


class DeliveryStore:
    """Creates, reads and replays deliveries through one client; `attempts.py` makes attempts."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self.client = client
        self.keys = keys

    async def create(
        self,
        delivery_id: str,
        fields: Mapping[str, str | bytes | int],
        *,
        target: str,
        order: str,
        job_keys: list[str],
        job_id: str,
        job_body: bytes,
        delay_ms: int,
    ) -> bool:
        """Store the delivery and its job; returns False when the id exists already."""
        flat = [part for pair in fields.items() for part in pair]
        keys = [self.keys.webhook(delivery_id), *job_keys]
        args = [self.keys.prefix, delivery_id, job_id, job_body, delay_ms, target, order, *flat]
        return bool(await _CREATE.run(self.client, keys, args))

    async def read(self, delivery_id: str) -> Delivery | None:
        """The delivery and its attempts, oldest first; None when unknown or expired."""
        record, attempts = self._keys(delivery_id)
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.hmget(record, *SHOWN)
            pipe.lrange(attempts, 0, -1)
            values, rows = await pipe.execute()
        return delivery(delivery_id, dict(zip(SHOWN, values, strict=True)), rows)

    async def url(self, delivery_id: str) -> str | None:
        """The delivery's URL; None when unknown."""
        found = await self.client.hget(self.keys.webhook(delivery_id), "url")
        return None if found is None else found.decode("utf-8", "replace")

    async def on_end(self, delivery_id: str) -> tuple[str, int] | None:
        """The function to call at the end, and the number of replays; None without a function."""
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
        """Replay; returns replayed, unknown, open, endpoint_disabled or secret_needed."""
        args = [self.keys.prefix, delivery_id, token, job_id, job_body, delay_ms, deadline_ms]
        keys = [*self._keys(delivery_id), *job_keys]
        found: bytes = await _REPLAY.run(self.client, keys, [*args, secret])
        return found.decode()

    async def select(self, wanted: Selection) -> AsyncIterator[str]:
        """Ids of the selected deliveries, by state and then by the time of their end."""
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
                # Deliveries that were replayed meanwhile have left the index.
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
