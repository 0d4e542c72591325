"""Shows the operator what holds endpoints back, and enables or disables them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cache.connection.scripts import load
from worker.keys import QueueKeys
from worker.webhooks.records import to_datetime
from worker.webhooks.secrets import DeliverySecrets

_SWITCH = load(__package__, "switch_endpoint", "..queue")
_MOST = 1000
_PAGE = 100
_HEALTH = ("name", "named_by", "disabled", "reason", "failing_since", "failures")
_LIMITS = ("failures", "opens", "open_until", "pause", "share")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    An endpoint: attempts under way, parked deliveries, breaker, pause, and whether it is disabled.

    `name` is its URL or id. `failures` are those in a row that its breaker counts;
    `refusals` all failed attempts since `failing_since`, which disable it in the end.
    `reason` of a disabled one is gone, failing or by_hand. `concurrency` is None when the
    endpoint has not asked for fewer attempts at a time.
    """

    key: str
    name: str
    sending: int
    parked: int
    failures: int
    breaker: str
    open_until: datetime | None
    paused_until: datetime | None
    concurrency: float | None
    disabled_at: datetime | None
    reason: str
    failing_since: datetime | None
    refusals: int

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in values.items()
        }


@dataclass(frozen=True, slots=True)
class Host:
    """A host: attempts under way at all its endpoints, and endpoints that wait for a slot of it."""

    name: str
    sending: int
    waiting: int


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """
    An event of an endpoint; `id` orders events, `subject` is the endpoint's key.

    `kind` is circuit_opened, circuit_closed, endpoint_disabled or endpoint_enabled.
    """

    id: str
    kind: str
    subject: str
    time: datetime


class EndpointStore:
    """Reads and switches endpoints through one client."""

    def __init__(self, client: Any, keys: QueueKeys, secrets: DeliverySecrets) -> None:
        self.client = client
        self.keys = keys
        self.secrets = secrets

    async def switch(self, endpoint: str, *, on: bool, name: str) -> bool:
        """Enable or disable an endpoint; returns False when nothing changed."""
        shown = self.secrets.hide_url(name, owner=endpoint)
        args = [self.keys.prefix, endpoint, "on" if on else "off", shown]
        return bool(await _SWITCH.run(self.client, [self.keys.webhook_endpoint(endpoint)], args))

    async def read(self, keys: Sequence[str]) -> list[Endpoint]:
        """Endpoints by their keys, `_PAGE` in a round trip; also those that nobody has used."""
        found: list[Endpoint] = []
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            async with self.client.pipeline(transaction=False) as pipe:
                for key in page:
                    pipe.hmget(self.keys.webhook_endpoint(key), *_HEALTH)
                    pipe.hmget(self.keys.webhook_limits(key), *_LIMITS)
                    pipe.zcard(self.keys.webhook_slots(key))
                    pipe.zcard(self.keys.webhook_parked(key))
                pipe.time()
                *rows, (seconds, micros) = await pipe.execute()
            now = seconds * 1000 + micros // 1000
            found += [
                self._endpoint(key, rows[4 * n : 4 * n + 4], now) for n, key in enumerate(page)
            ]
        return found

    async def disabled(self) -> list[Endpoint]:
        """Disabled endpoints, the longest disabled first; at most 1,000."""
        found = await self.client.zrange(self.keys.webhook_disabled, 0, _MOST - 1)
        return await self.read([member.decode() for member in found])

    async def failing(self) -> list[Endpoint]:
        """Endpoints that fail and are not disabled, the latest failure first; at most 1,000."""
        found = await self.client.zrange(self.keys.webhook_failing, 0, _MOST - 1, desc=True)
        return await self.read([member.decode() for member in found])

    async def host(self, name: str) -> Host:
        async with self.client.pipeline(transaction=False) as pipe:
            pipe.zcard(self.keys.webhook_host(name))
            pipe.zcard(self.keys.webhook_line(name))
            sending, waiting = await pipe.execute()
        return Host(name, sending, waiting)

    async def events(self, after: str, limit: int) -> list[WebhookEvent]:
        """Events after an id ("0" for all), oldest first."""
        rows = await self.client.xrange(
            self.keys.webhook_events, min=f"({after}", max="+", count=limit
        )
        return [_event(id_.decode(), fields) for id_, fields in rows]

    def _endpoint(self, key: str, rows: Sequence[Any], now: int) -> Endpoint:
        (name, by, disabled, reason, since, refusals), limits, sending, parked = rows
        failures, opens, open_until, pause, share = limits
        owner = by.decode("utf-8", "replace") if by else key
        is_open = open_until is not None and int(open_until) > now
        return Endpoint(
            key=key,
            name=self.secrets.show_url(name, owner=owner) if name else key,
            sending=sending,
            parked=parked,
            failures=int(failures or 0),
            breaker="open" if is_open else "half_open" if opens else "closed",
            open_until=_moment(open_until) if is_open else None,
            paused_until=_moment(pause) if pause and int(pause) > now else None,
            concurrency=float(share) if share else None,
            disabled_at=_moment(disabled),
            reason=reason.decode() if reason else "",
            failing_since=_moment(since),
            refusals=int(refusals or 0),
        )


def _event(id_: str, fields: dict[bytes, bytes]) -> WebhookEvent:
    moment = to_datetime(int(id_.partition("-")[0]))
    return WebhookEvent(
        id_, fields[b"kind"].decode(), fields.get(b"endpoint", b"").decode(), moment
    )


def _moment(value: bytes | None) -> datetime | None:
    return to_datetime(int(value)) if value else None
