"""Computes the pace of calls that stays within a limit per minute, over any minute."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Limits of direct calls over all workers; 0 means no limit. `urgent_share` is 0 to 0.9."""

    requests_per_minute: int
    tokens_per_minute: int
    max_concurrency: int
    urgent_share: float


@dataclass(frozen=True, slots=True)
class CallPace:
    """One unit every `step_ms` (0: no limit), of which `burst` may come at once."""

    step_ms: float
    burst: int


def call_pace(per_minute: int) -> CallPace:
    """
    The pace for a limit. The burst is subtracted from the steady rate, so that no
    minute, whenever it starts, contains more than the limit.
    """
    if not per_minute:
        return CallPace(0.0, 1)
    burst = max(1, math.ceil(per_minute * 0.005))
    steady = max(1, per_minute - burst - math.ceil(per_minute * 0.005))
    return CallPace(60_000 / steady, burst)
