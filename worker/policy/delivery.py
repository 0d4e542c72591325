"""
What an attempt's outcome means for a webhook delivery.

The schedule is exponential with full jitter: the n-th retry waits a random time
up to min(cap, base * 2^(n-1)) (Brooker, "Exponential Backoff And Jitter").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

# A receiver that calls the request itself wrong rarely changes its mind; these
# few tries cover a deploy that answers 404 while it starts.
FEW_ATTEMPTS = 3
_RETRIED_4XX = frozenset({408, 425, 429})


class DeliveryState(StrEnum):
    """pending -> sending -> delivered | waiting | dead; waiting -> sending (docs/states.md)."""

    PENDING = "pending"
    SENDING = "sending"
    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended: an HTTP status, or an error of the way there."""

    status: int | None = None
    error: str = ""
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the delivery; `wait_s` is meant for WAITING only."""

    state: DeliveryState
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """Attempts in all, and the bounds of the delay between them, seconds."""

    max_attempts: int = 10
    base_s: float = 5.0
    cap_s: float = 36_000.0


def decide(
    outcome: Outcome, *, attempt: int, schedule: RetrySchedule, rng: Callable[[], float]
) -> Verdict:
    """
    Judge attempt number `attempt` (from 1); `rng` returns a float in [0, 1).

    2xx is success. 410 and a permanent error end it; other 3xx and 4xx get few
    attempts; everything else is tried again until the schedule is used up.
    """
    status = outcome.status
    if status is not None and 200 <= status < 300:
        return Verdict(DeliveryState.DELIVERED)
    if outcome.permanent or status == 410:
        return Verdict(DeliveryState.DEAD)
    limit = schedule.max_attempts
    if status is not None and 300 <= status < 500 and status not in _RETRIED_4XX:
        limit = min(limit, FEW_ATTEMPTS)
    if attempt >= limit:
        return Verdict(DeliveryState.DEAD)
    # 2^60 seconds is beyond any cap, and floats hold it.
    ceiling = min(schedule.cap_s, schedule.base_s * 2.0 ** min(attempt - 1, 60))
    return Verdict(DeliveryState.WAITING, ceiling * rng())
