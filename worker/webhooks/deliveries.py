"""
Stores webhook deliveries in Redis: one hash and one list of attempts each.

A delivery and its job are stored together. A delivery has no expiry until it
ends; then it can be read and replayed for LETTA_WEBHOOK_RETENTION_S.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from cache.connection.scripts import load
from worker.keys import QueueKeys
from worker.queue.staging import LARGE, Staged, staged
from worker.webhooks.policy import ENDED, DeliveryState
from worker.webhooks.records import SHOWN, Delivery, delivery, to_ms
from worker.webhooks.secrets import DeliverySecrets
from worker.webhooks.selection import Selection

__all__ = ["Delivery", "DeliveryStore", "Selection"]

_CREATE = load(__package__, "create_delivery", "..queue")
_REPLAY = load(__package__, "replay_delivery", "..queue")
_RETRY = load(__package__, "retry_delivery", "..queue")

# Deliveries read in one round trip of a selection.
_PAGE = 200
# Bodies are read with their attempts; attempt_deliveries.lua counts the bytes of larger ones.
_SMALL_BODY = 4096


class DeliveryStore:
    """Creates, reads and replays deliveries through one client; `attempts.py` makes attempts."""

    def __init__(self, client: Any, keys: QueueKeys, secrets: DeliverySecrets) -> None:
        self.client = client
        self.keys = keys
        self.secrets = secrets

    async def create(
        self,
        delivery_id: str,
        fields: Mapping[str, str | bytes | int],
        *,
        endpoint: str,
        host: str,
        order: str,
        job_keys: list[str],
        job_id: str,
        job_body: bytes,
        delay_ms: int,
    ) -> bool:
        """Store the delivery and its job; returns False when the id exists already."""
        keys = [self.keys.webhook(delivery_id), *job_keys]
        args = [self.keys.prefix, delivery_id, job_id, job_body, delay_ms, endpoint, host, order]
        body: Any = fields["body"]
        if len(body) <= _SMALL_BODY:
            flat = [part for pair in fields.items() for part in pair]
            return bool(await _CREATE.run(self.client, keys, [*args, *flat]))
        fields = {**fields, "size": len(body)}
        large: list[Staged] = [{"body": body}] if len(body) > LARGE else []
        if large:
            del fields["body"]
        flat = [part for pair in fields.items() for part in pair]
        async with staged(self.client, self.keys, large) as names:
            return bool(await _CREATE.run(self.client, [*keys, *names], [*args, *flat]))

    async def read(self, delivery_id: str) -> Delivery | None:
        """The delivery and its attempts, oldest first; None when unknown or expired."""
        record, attempts = self._keys(delivery_id)
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.hmget(record, *SHOWN)
            pipe.lrange(attempts, 0, -1)
            values, rows = await pipe.execute()
        row = dict(zip(SHOWN, values, strict=True))
        url = self.secrets.show_url(row["url"] or b"", owner=delivery_id)
        return delivery(delivery_id, url, row, rows)

    async def url(self, delivery_id: str) -> str | None:
        """
        The delivery's URL; None when unknown.

        Raises:
            InvalidArgument: it is sealed, and this process has not its key.
        """
        found = await self.client.hget(self.keys.webhook(delivery_id), "url")
        return None if found is None else self.secrets.open_url(found, owner=delivery_id)

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

    async def retry(self, delivery_id: str) -> str:
        """Make it due; returns due, unknown, ended, sending, running or jobless."""
        keys = [self.keys.webhook(delivery_id)]
        found: bytes = await _RETRY.run(self.client, keys, [self.keys.prefix])
        return found.decode()

    async def select(self, wanted: Selection) -> AsyncIterator[str]:
        """Ids of the selected deliveries: ended ones by state and time, then open ones."""
        for state in wanted.states:
            if state in ENDED:
                async for page in self._ended(state, wanted):
                    for id_ in await self._matching(page, wanted):
                        yield id_
        if not set(wanted.states) <= set(ENDED):
            seen: set[str] = set()
            async for page in self._open():
                for id_ in await self._matching(page, wanted):
                    if id_ not in seen:
                        seen.add(id_)
                        yield id_

    async def _ended(self, state: DeliveryState, wanted: Selection) -> AsyncIterator[list[str]]:
        low = "-inf" if wanted.since is None else to_ms(wanted.since)
        high = "+inf" if wanted.until is None else f"({to_ms(wanted.until)}"
        index, offset = self.keys.webhook_ended(state), 0
        while True:
            page = await self.client.zrange(
                index, low, high, byscore=True, offset=offset, num=_PAGE
            )
            yield [member.decode() for member in page]
            if len(page) < _PAGE:
                return
            # Deliveries that were replayed meanwhile have left the index.
            left = await self.client.zmscore(index, page)
            offset += sum(score is not None for score in left)

    async def _open(self) -> AsyncIterator[list[str]]:
        # Their scores change while they are read, so they are scanned, not paged by rank.
        cursor = None
        while cursor != 0:
            cursor, pairs = await self.client.zscan(
                self.keys.webhook_open, cursor or 0, count=_PAGE
            )
            yield [member.decode() for member, _ in pairs]

    async def _matching(self, ids: list[str], wanted: Selection) -> list[str]:
        names = ("state", "created", "event_type", "endpoint_id", "url")
        async with self.client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hmget(self.keys.webhook(id_), *names)
            rows = await pipe.execute() if ids else []
        return [id_ for id_, row in zip(ids, rows, strict=True) if self._matches(id_, row, wanted)]

    def _matches(self, id_: str, row: list[bytes | None], wanted: Selection) -> bool:
        state, created, *given, url = [value or b"" for value in row]
        if state.decode("utf-8", "replace") not in wanted.states:
            return False
        asked = (wanted.event_type, wanted.endpoint_id)
        if any(a is not None and a.encode() != b for a, b in zip(asked, given, strict=True)):
            return False
        if wanted.url is not None and self.secrets.show_url(url, owner=id_) != wanted.url:
            return False
        if DeliveryState(state.decode()) in ENDED:
            return True
        at = int(created or 0)
        return (wanted.since is None or at >= to_ms(wanted.since)) and (
            wanted.until is None or at < to_ms(wanted.until)
        )

    def _keys(self, delivery_id: str) -> list[str]:
        return [self.keys.webhook(delivery_id), self.keys.webhook_attempts(delivery_id)]
