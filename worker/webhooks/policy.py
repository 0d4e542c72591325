"""
Decides what an attempt's outcome means for the delivery and for its endpoint.

A delay is random, up to a ceiling (full jitter; Brooker, "Exponential Backoff And
Jitter"). The ceilings are a list, by default that of Standard Webhooks, or double
from a base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

# A status that rejects the request itself rarely changes. A few attempts cover a
# deployment that answers 404 while it starts.
from worker import backoff

FEW_ATTEMPTS = 3
_RETRIED_4XX = frozenset({408, 425, 429})
_SLOW_DOWN = frozenset({429, 503})
# Our own failures use up no attempts, so they need a backoff of their own.
_INTERNAL_BASE_S, _INTERNAL_CAP_S = 1.0, 300.0
# Many deliveries may get the same Retry-After, so a random share of it is added.
_RETRY_AFTER_SPREAD = 0.1


class DeliveryState(StrEnum):
    """pending -> sending -> delivered | waiting | dead | disabled (docs/states.md)."""

    PENDING = "pending"
    SENDING = "sending"
    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"
    DISABLED = "disabled"


ENDED = (DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.DISABLED)


class BreakerSign(StrEnum):
    """What an attempt tells the endpoint's breaker: alive, failing, or nothing."""

    ALIVE = "alive"
    FAILING = "failing"
    NONE = "none"


class EndpointSign(StrEnum):
    """What an attempt says about disabling: the endpoint takes, refuses, is gone, or nothing."""

    TAKES = "takes"
    REFUSES = "refuses"
    GONE = "gone"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    How one attempt ended: an HTTP status, an error, or both when something after the status
    line was odd. A status decides alone: a receiver that said 2xx has the webhook.
    `internal`: our side failed. `retry_after_s`: from the response.
    """

    status: int | None = None
    error: str = ""
    permanent: bool = False
    internal: bool = False
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    The decision about a delivery after an attempt.

    `wait_s` applies to WAITING only. An attempt that is not `charged` does not count
    against the limit. `slow_down`: the endpoint asked for a lower rate, and for no attempt
    within `pause_s` unless that is None.
    """

    state: DeliveryState
    wait_s: float = 0.0
    charged: bool = True
    breaker: BreakerSign = BreakerSign.NONE
    endpoint: EndpointSign = EndpointSign.NONE
    slow_down: bool = False
    pause_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """
    The maximum number of attempts, and the ceilings of the delays between them in seconds.

    `delays_s` lists the ceilings; its last item repeats. If it is empty, they double
    from `base_s`. `jitter` is the random share of a delay.
    """

    max_attempts: int
    base_s: float
    cap_s: float
    delays_s: tuple[float, ...]
    jitter: float
    retry_after_max_s: float

    def ceiling_s(self, attempt: int) -> float:
        """The longest delay after attempt number `attempt` (from 1)."""
        if self.delays_s:
            return min(self.cap_s, self.delays_s[min(attempt, len(self.delays_s)) - 1])
        return backoff.ceiling_s(attempt, base_s=self.base_s, cap_s=self.cap_s)


def decide(
    outcome: Outcome,
    *,
    attempt: int,
    schedule: RetrySchedule,
    rng: Callable[[], float],
    left_s: float = math.inf,
    internal_failures: int = 0,
) -> Verdict:
    """
    Decide what follows from attempt number `attempt` (from 1, without uncharged ones).

    `rng` returns a float in [0, 1); `left_s` is the time to the delivery's deadline;
    `internal_failures` counts our own side's preceding failures in a row.

    2xx is success. 410 and permanent errors end the delivery; other 3xx and 4xx get a
    few attempts; our own failures use up none; everything else is retried until the
    schedule is used up. No wait extends past the deadline.
    """
    if outcome.is_success:
        return Verdict(
            DeliveryState.DELIVERED, breaker=BreakerSign.ALIVE, endpoint=EndpointSign.TAKES
        )
    if outcome.internal:
        wait_s = backoff.full_jitter_s(
            internal_failures + 1, base_s=_INTERNAL_BASE_S, cap_s=_INTERNAL_CAP_S, rng=rng
        )
        return _wait(Verdict(DeliveryState.WAITING, wait_s, charged=False), left_s)
    signs = _signs(outcome, schedule)
    if outcome.permanent or outcome.status == 410:
        return _dead(signs, outcome.error or "gone")
    if attempt >= _limit(outcome.status, schedule):
        return _dead(signs, "attempts_used_up")
    draw = schedule.ceiling_s(attempt) * (1 - schedule.jitter + schedule.jitter * rng())
    if signs.pause_s is not None:
        draw = max(draw, signs.pause_s * (1 + _RETRY_AFTER_SPREAD * rng()))
    return _wait(_with(signs, DeliveryState.WAITING, draw), left_s)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """
    Parse `Retry-After` (digits or an HTTP date) into seconds from `now` (aware).

    Returns None for another form, and 0 for a time in the past.
    """
    if value is None:
        return None
    text = value.strip()
    if re.fullmatch(r"[0-9]+", text):
        # Longer numbers could overflow a float; callers clamp the value anyway.
        return float(text[:15]) if len(text) <= 15 else 1e15
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return max(0.0, (moment - now).total_seconds())
    except OverflowError:
        return None


def _signs(outcome: Outcome, schedule: RetrySchedule) -> Verdict:
    status = outcome.status
    answered = status is not None and status < 500
    breaker = BreakerSign.ALIVE if answered else BreakerSign.FAILING
    endpoint = EndpointSign.GONE if status == 410 else EndpointSign.REFUSES
    if outcome.permanent:
        # Nothing was sent, so nothing is known about the endpoint.
        breaker = BreakerSign.NONE
    pause_s = outcome.retry_after_s
    if pause_s is not None:
        pause_s = min(max(0.0, pause_s), schedule.retry_after_max_s)
    return Verdict(
        DeliveryState.DEAD,
        breaker=breaker,
        endpoint=endpoint,
        slow_down=status in _SLOW_DOWN,
        pause_s=pause_s,
    )


def _limit(status: int | None, schedule: RetrySchedule) -> int:
    if status is not None and 300 <= status < 500 and status not in _RETRIED_4XX:
        return min(schedule.max_attempts, FEW_ATTEMPTS)
    return schedule.max_attempts


def _wait(verdict: Verdict, left_s: float) -> Verdict:
    if verdict.wait_s <= left_s:
        return verdict
    return _dead(verdict, "deadline")


def _dead(verdict: Verdict, reason: str) -> Verdict:
    return _with(verdict, DeliveryState.DEAD, 0.0, reason)


def _with(verdict: Verdict, state: DeliveryState, wait_s: float, reason: str = "") -> Verdict:
    return Verdict(
        state,
        wait_s,
        charged=verdict.charged,
        breaker=verdict.breaker,
        endpoint=verdict.endpoint,
        slow_down=verdict.slow_down,
        pause_s=verdict.pause_s,
        reason=reason,
    )
