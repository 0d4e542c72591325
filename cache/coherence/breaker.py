"""Decides when to stop calling a server, and when to probe it. No clock, no IO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0


class Breaker:
    """
    closed --failed--> open --probe--> half_open --succeeded--> closed
                        ^                  |
                        +------failed------+

    Args:
        rng: uniform in [0, 1). Jitter spreads the probes of many processes.
    """

    def __init__(self, rng: Callable[[], float]) -> None:
        self._rng = rng
        self._failures = 0
        self.state: Literal["closed", "open", "half_open"] = "closed"

    def failed(self) -> None:
        self._failures += 1
        self.state = "open"

    def wait_s(self) -> float:
        """Time until the next probe: 50 ms, doubled up to 1 s, less up to half as jitter."""
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._failures - 1, 10))
        return longest * (1 - self._rng() / 2)

    def probe(self) -> None:
        self.state = "half_open"

    def succeeded(self) -> None:
        self._failures = 0
        self.state = "closed"
