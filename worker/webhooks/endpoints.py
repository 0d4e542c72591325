"""Shows the operator which webhook targets are throttled and which endpoints are disabled."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cache.connection.scripts import load
from worker.keys import QueueKeys
from worker.webhooks.records import to_datetime

_SWITCH = load(__package__, "switch_endpoint", "..queue")
_MOST = 1000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint; `name` is its URL or id, `reason` is gone, failing or by_hand."""

    key: str
    name: str
    disabled_at: datetime | None
    reason: str
    failing_since: datetime | None
    failures: int

    def to_dict(self) -> dict[str, Any]:
        moments = {"disabled_at": self.disabled_at, "failing_since": self.failing_since}
        shown = {name: None if at is None else at.isoformat() for name, at in moments.items()}
        return {
            "key": self.key,
            "name": self.name,
            "reason": self.reason,
            "failures": self.failures,
            **shown,
        }


@dataclass(frozen=True, slots=True)
class TargetState:
    """A target's attempts under way, parked deliveries, breaker and pause."""

    target: str
    sending: int
    parked: int
    failures: int
    breaker: str
    open_until: datetime | None
    paused_until: datetime | None
    concurrency: float | None

    def to_dict(self) -> dict[str, Any]:
        moments = {"open_until": self.open_until, "paused_until": self.paused_until}
        shown = {name: None if at is None else at.isoformat() for name, at in moments.items()}
        names = ("target", "sending", "parked", "failures", "breaker", "concurrency")
        return {**{name: getattr(self, name) for name in names}, **shown}


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """
    An event of a target or endpoint; `id` orders events.

    `kind` is circuit_opened or circuit_closed (`subject` is a target), or
    endpoint_disabled or endpoint_enabled (`subject` is an endpoint's key).
    """

    id: str
    kind: str
    subject: str
    time: datetime


class EndpointStore:
    """Reads and switches endpoints through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self.client = client
        self.keys = keys

    async def switch(self, endpoint: str, *, on: bool, target: str, name: str) -> bool:
        """Enable or disable an endpoint; returns False when nothing changed."""
        args = [self.keys.prefix, endpoint, "on" if on else "off", target, name]
        return bool(await _SWITCH.run(self.client, [self.keys.webhook_endpoint(endpoint)], args))

    async def endpoint(self, key: str) -> Endpoint:
        names = ("name", "disabled", "reason", "failing_since", "failures")
        row = await self.client.hmget(self.keys.webhook_endpoint(key), *names)
        name, disabled, reason, since, failures = row
        return Endpoint(
            key=key,
            name=name.decode() if name else key,
            disabled_at=_moment(disabled),
            reason=reason.decode() if reason else "",
            failing_since=_moment(since),
            failures=int(failures or 0),
        )

    async def disabled(self) -> list[Endpoint]:
        """Disabled endpoints, the longest disabled first; at most 1,000."""
        found = await self.client.zrange(self.keys.webhook_disabled, 0, _MOST - 1)
        return [await self.endpoint(member.decode()) for member in found]

    async def target(self, target: str) -> TargetState:
        keys = self.keys
        names = ("failures", "opens", "open_until", "pause", "share")
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.webhook_target(target), *names)
            pipe.zcard(keys.webhook_slots(target))
            pipe.zcard(keys.webhook_parked(target))
            pipe.time()
            row, sending, parked, (seconds, micros) = await pipe.execute()
        failures, opens, open_until, pause, share = row
        now = seconds * 1000 + micros // 1000
        is_open = open_until is not None and int(open_until) > now
        return TargetState(
            target=target,
            sending=sending,
            parked=parked,
            failures=int(failures or 0),
            breaker="open" if is_open else "half_open" if opens else "closed",
            open_until=_moment(open_until) if is_open else None,
            paused_until=_moment(pause) if pause and int(pause) > now else None,
            concurrency=float(share) if share else None,
        )

    async def events(self, after: str, limit: int) -> list[WebhookEvent]:
        """Events after an id ("0" for all), oldest first."""
        rows = await self.client.xrange(
            self.keys.webhook_events, min=f"({after}", max="+", count=limit
        )
        return [_event(id_.decode(), fields) for id_, fields in rows]


def _event(id_: str, fields: dict[bytes, bytes]) -> WebhookEvent:
    subject = fields.get(b"target") or fields.get(b"endpoint") or b""
    moment = to_datetime(int(id_.partition("-")[0]))
    return WebhookEvent(id_, fields[b"kind"].decode(), subject.decode(), moment)


def _moment(value: bytes | None) -> datetime | None:
    return to_datetime(int(value)) if value else None
