"""
Exponential backoff with full jitter. Pure: randomness is handed in.

Full jitter draws a delay from the whole range below a ceiling, so that clients
which failed together do not come back together (Brooker, "Exponential Backoff
And Jitter").
"""

from __future__ import annotations

from collections.abc import Callable

# Far beyond any cap; a larger exponent would overflow a float.
_MAX_DOUBLINGS = 64


def ceiling_s(attempt: int, *, base_s: float, cap_s: float) -> float:
    """The longest delay after failure number `attempt` (from 1), seconds: `base_s`, doubling."""
    return min(cap_s, base_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS))


def full_jitter_s(attempt: int, *, base_s: float, cap_s: float, rng: Callable[[], float]) -> float:
    """The delay after failure number `attempt` (from 1), seconds; `rng` gives a float in [0, 1)."""
    return rng() * ceiling_s(attempt, base_s=base_s, cap_s=cap_s)
