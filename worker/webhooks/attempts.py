"""
Begins attempts at deliveries in Redis and records how they ended.

What a worker's jobs request in one tick of the event loop is sent in one script
call; requests that arrive during the call form the next one. A call costs the
same for one delivery as for sixty. While the server is unavailable, the jobs
wait for it until their own timeouts.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import count
from typing import Any

from redis import exceptions
from redis.backoff import ExponentialWithJitterBackoff

from cache.connection.owner import rest
from cache.connection.refusals import explain, is_denied
from cache.connection.scripts import load
from cache.encoding import codec
from cache.logs import get_logger
from worker.errors import Undecodable
from worker.keys import MAX_WEBHOOK_ATTEMPTS, QueueKeys
from worker.queue.encoder import now_ms
from worker.queue.series import bucket_of
from worker.queue.staging import MOST_INLINE
from worker.queue.store import job_body
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

log = get_logger(__name__)

_ATTEMPT = load(__package__, "attempt_deliveries", "..queue")
_END_JOBLESS = load(__package__, "end_jobless", "..queue")
# The job that reports a delivery's end to the function given as `on_end`.
REPORT_WEBHOOK = "report_webhook"
_MARK = "<delivery>"
# Not every RedisError: a script error would repeat.
_AWAY = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    OSError,
)
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.05, 1.0
# Open deliveries that one script looks at.
MOST_JOBLESS = 100
# Keeps a script call short; the rest is sent in the next call.
_MOST = 64
_TELL_EVERY_S = 30.0
# Where attempt_deliveries.lua returns a body, and what it returns for one to be read apart.
_BODY, _APART = 5, -1


class ScriptFailed(Undecodable):
    """One delivery's step failed in the server, and only this one's: its keys are not what they were."""


@dataclass(frozen=True, slots=True)
class _Terms:
    limits: EndpointLimits
    max_attempts: int
    retention_s: float


@dataclass(frozen=True, slots=True)
class _Asked:
    terms: _Terms
    is_end: bool
    row: bytes  # encoded early, so that an encoding error fails only its own caller
    answer: asyncio.Future[list[Any]]


class AttemptStore:
    """Begins and records attempts through one client, on one event loop."""

    def __init__(self, client: Any, keys: QueueKeys, *, retention_s: float) -> None:
        self.client = client
        self.keys = keys
        self.retention_s = retention_s
        self._asked: deque[_Asked] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._name = uuid.uuid4().hex[:12]
        self._runs = count()
        self._tell_at = float("-inf")
        self.is_refused = False  # a command is denied: the last call is sent again

    async def begin(
        self, delivery_id: str, now: datetime, limits: EndpointLimits, *, max_attempts: int
    ) -> ClaimedDelivery | Throttled | EndedUnsent | None:
        """Begin an attempt, or return why not; None when the delivery has ended or is unknown."""
        row = [
            delivery_id,
            codec.lua_text(encode_attempt(Attempt(now, None, "interrupted", None))),
            f"{self._name}:{next(self._runs)}",
        ]
        what, *rest = await self._ask(_Terms(limits, max_attempts, self.retention_s), False, row)
        if what == b"go":
            if rest[_BODY] == _APART:
                rest[_BODY] = await self._body(delivery_id)
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
        _, *events = await self._ask(_Terms(limits, max_attempts, self.retention_s), True, row)
        return [event.decode() for event in events]

    async def end_jobless(
        self, *, seen_s: float, most: int = MOST_JOBLESS
    ) -> tuple[int, list[str]]:
        """
        End open deliveries whose job no longer exists, as dead with the reason job_removed.

        Checks at most `most` that were not checked for `seen_s`; returns how many it
        checked and the ids of those that it ended.
        """
        retention_ms = int(self.retention_s * 1000)
        args = [self.keys.prefix, int(seen_s * 1000), most, retention_ms, *_report()]
        seen, *ended = await _END_JOBLESS.run(self.client, [self.keys.webhook_open], args)
        return seen, [id_.decode() for id_ in ended]

    async def _body(self, delivery_id: str) -> bytes | None:
        """A body that is too large for the script's reply. Waits for a server that is away, as `begin`."""
        backoff, failures = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S), 0
        while True:
            try:
                body: bytes | None = await self.client.hget(self.keys.webhook(delivery_id), "body")
            except _AWAY:
                failures += 1
                await rest(self.client, backoff.compute(failures))
            else:
                return body

    async def _ask(self, terms: _Terms, is_end: bool, row: list[Any]) -> list[Any]:
        loop = asyncio.get_running_loop()
        asked = _Asked(terms, is_end, codec.encode_row(row), loop.create_future())
        self._asked.append(asked)
        if self._sending is None:
            # The task starts after all ready jobs, so that their requests are in the same call.
            self._sending = loop.create_task(self._send(), name="webhook-attempts")
        answer = await asked.answer
        if answer[0] == b"error":
            raise ScriptFailed(answer[1].decode(errors="replace"))
        return answer

    async def _send(self) -> None:
        batch: list[_Asked] = []
        try:
            while self._asked:
                batch = self._next()
                try:
                    await self._send_batch(batch)
                except Exception as exc:  # noqa: BLE001  (raised in each waiting job)
                    for asked in batch:
                        if not asked.answer.done():
                            asked.answer.set_exception(exc)
        except asyncio.CancelledError:
            for asked in (*batch, *self._asked):
                asked.answer.cancel()
            self._asked.clear()
            raise
        finally:
            self._sending = None

    def _next(self) -> list[_Asked]:
        terms = self._asked[0].terms
        batch: list[_Asked] = []
        size = 0
        while self._asked and len(batch) < _MOST and self._asked[0].terms == terms:
            size += len(self._asked[0].row)
            if batch and size > MOST_INLINE:
                break
            batch.append(self._asked.popleft())
        return batch

    async def _send_batch(self, batch: Sequence[_Asked]) -> None:
        backoff, failures = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S), 0
        while batch:
            try:
                await self._send_once(batch)
            except (exceptions.RedisError, OSError) as exc:
                # Giving up would lose the outcomes, and the attempts would be repeated. Both
                # kinds are safe to send again; each waiting job has its own timeout.
                if not isinstance(exc, _AWAY):
                    if not is_denied(str(exc)):
                        raise
                    self._tell(exc)
                failures += 1
                await rest(self.client, backoff.compute(failures))
                batch = [asked for asked in batch if not asked.answer.done()]
            else:
                self.is_refused = False
                return

    def _tell(self, denied: Exception) -> None:
        self.is_refused = True
        now = asyncio.get_running_loop().time()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            log.warning("webhook.refused", error=explain(denied), retrying=True)

    async def _send_once(self, batch: Sequence[_Asked]) -> None:
        ends = [asked for asked in batch if asked.is_end]
        begins = [asked for asked in batch if not asked.is_end]
        args = [
            self.keys.prefix,
            _packed(batch[0].terms),
            codec.array([asked.row for asked in ends]),
            codec.array([asked.row for asked in begins]),
            *_report(),
        ]
        replies = await _ATTEMPT.run(self.client, [self.keys.webhook_open], args)
        if [len(answers) for answers in replies] != [len(ends), len(begins)]:
            raise RuntimeError("the script answered for other attempts than were asked for")
        denied = ""
        for group, answers in zip((ends, begins), replies, strict=True):
            for asked, answer in zip(group, answers, strict=True):
                if answer[0] == b"error" and is_denied(answer[1].decode(errors="replace")):
                    denied = answer[1].decode(errors="replace")
                elif not asked.answer.done():
                    asked.answer.set_result(answer)
        if denied:
            raise exceptions.NoPermissionError(denied)


def _times(attempt: Attempt, wait_s: float | None) -> tuple[int, int, int, int]:
    """The buckets of an attempt's run and wait, and both times in us."""
    if attempt.ms is None or wait_s is None:
        return -1, 0, 0, 0
    run = bucket_of(attempt.ms / 1000)
    return run, bucket_of(wait_s), int(attempt.ms * 1000), int(wait_s * 1_000_000)


@lru_cache(maxsize=16)
def _packed(terms: _Terms) -> bytes:
    limits = terms.limits
    return codec.encode(
        {
            "concurrency": limits.concurrency,
            "host_concurrency": limits.host_concurrency,
            "rate": limits.rate_per_s,
            "slot": int(limits.slot_s * 1000),
            "breaker_failures": limits.breaker_failures,
            "open": int(limits.open_s * 1000),
            "open_max": int(limits.open_max_s * 1000),
            "disable_after": int(limits.disable_after_s * 1000),
            "retention": int(terms.retention_s * 1000),
            "max_attempts": terms.max_attempts,
            "most_records": MAX_WEBHOOK_ATTEMPTS,
        }
    )


def _report() -> tuple[bytes, bytes]:
    """The body of the job that reports an end, split where the delivery's id is inserted."""
    body = job_body(REPORT_WEBHOOK, [_MARK], {}, now_ms=now_ms())
    head, _, tail = body.partition(codec.encode(_MARK))
    return head, tail
