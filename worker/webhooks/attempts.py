"""Begins attempts at deliveries in Redis and records how they ended."""

from __future__ import annotations

import uuid
from datetime import datetime
from itertools import count
from typing import Any

from cache.connection.scripts import load
from cache.encoding import codec
from worker.keys import QueueKeys
from worker.queue.series import bucket_of
from worker.webhooks.attempt_calls import (
    REPORT_WEBHOOK,
    AttemptCalls,
    ScriptFailed,
    Terms,
    report,
)
from worker.webhooks.limits import EndpointLimits
from worker.webhooks.policy import DeliveryState, Verdict
from worker.webhooks.records import (
    Attempt,
    ClaimedDelivery,
    EndedUnsent,
    Throttled,
    claimed,
    encode_attempt,
)

__all__ = [
    "REPORT_WEBHOOK",
    "Attempt",
    "AttemptStore",
    "ClaimedDelivery",
    "EndedUnsent",
    "ScriptFailed",
    "Throttled",
]

_END_JOBLESS = load(__package__, "end_jobless", "..queue")
# Open deliveries that one script looks at.
MOST_JOBLESS = 100
# Where attempt_deliveries.lua returns a body, and what it returns for one to be read apart.
_BODY, _APART = 5, -1


class AttemptStore:
    """Begins and records attempts through one client, on one event loop."""

    def __init__(self, client: Any, keys: QueueKeys, *, retention_s: float) -> None:
        self.client = client
        self.keys = keys
        self.retention_s = retention_s
        self.calls = AttemptCalls(client, keys)
        self._name = uuid.uuid4().hex[:12]
        self._runs = count()
        self._terms: Terms | None = None

    async def begin(
        self, delivery_id: str, now: datetime, limits: EndpointLimits, *, max_attempts: int
    ) -> ClaimedDelivery | Throttled | EndedUnsent | None:
        """Begin an attempt, or return why not; None when the delivery has ended or is unknown."""
        row = [
            delivery_id,
            codec.lua_text(encode_attempt(Attempt(now, None, "interrupted", None))),
            f"{self._name}:{next(self._runs)}",
        ]
        what, *rest = await self.calls.ask(self._terms_of(limits, max_attempts), False, row)
        if what == b"go":
            if rest[_BODY] == _APART:
                rest[_BODY] = await self.calls.body(delivery_id)
            return claimed(delivery_id, rest)
        if what == b"wait":
            return Throttled(rest[0] / 1000, rest[1].decode())
        if what == b"end":
            return EndedUnsent(DeliveryState(rest[0].decode()), rest[1].decode())
        return None

    async def record(
        self,
        delivery_id: str,
        number: int,
        attempt: Attempt,
        verdict: Verdict,
        limits: EndpointLimits,
        *,
        draw: float,
        max_attempts: int,
        wait_s: float | None = None,
    ) -> list[str]:
        """
        Record how attempt `number` ended; does nothing when a later attempt has begun.

        `draw` is a random number in [0, 1). `wait_s`: from when the attempt was due to its
        start; without it, the history has no times of the attempt. Returns the events that it caused:
        circuit_opened, circuit_closed, endpoint_disabled.
        """
        row = [
            delivery_id,
            number,
            verdict.state.value,
            codec.lua_text(encode_attempt(attempt)),
            int(verdict.wait_s * 1000),
            "" if attempt.status is None else attempt.status,
            attempt.error,
            verdict.charged,
            verdict.breaker.value,
            verdict.slow_down,
            -1 if verdict.pause_s is None else int(verdict.pause_s * 1000),
            verdict.endpoint.value,
            draw,
            *_times(attempt, wait_s),
        ]
        _, *events = await self.calls.ask(self._terms_of(limits, max_attempts), True, row)
        return [event.decode() for event in events]

    def _terms_of(self, limits: EndpointLimits, max_attempts: int) -> Terms:
        """The same object while nothing changes: a worker's calls are grouped by it."""
        terms = self._terms
        if terms is None or terms.limits is not limits or terms.max_attempts != max_attempts:
            terms = self._terms = Terms(limits, max_attempts, self.retention_s)
        return terms

    async def end_jobless(
        self, *, seen_s: float, most: int = MOST_JOBLESS
    ) -> tuple[int, list[str]]:
        """
        End open deliveries whose job no longer exists, as dead with the reason job_removed.

        Checks at most `most` that were not checked for `seen_s`; returns how many it
        checked and the ids of those that it ended.
        """
        retention_ms = int(self.retention_s * 1000)
        args = [self.keys.prefix, int(seen_s * 1000), most, retention_ms, *report()]
        seen, *ended = await _END_JOBLESS.run(self.client, [self.keys.webhook_open], args)
        return seen, [id_.decode() for id_ in ended]


def _times(attempt: Attempt, wait_s: float | None) -> tuple[int, int, int, int]:
    """The buckets of an attempt's run and wait, and both times in us."""
    if attempt.ms is None or wait_s is None:
        return -1, 0, 0, 0
    run = bucket_of(attempt.ms / 1000)
    return run, bucket_of(wait_s), int(attempt.ms * 1000), int(wait_s * 1_000_000)
