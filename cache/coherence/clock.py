"""Estimates the server's time, which stored times refer to, and measures durations."""

from __future__ import annotations

import time


class Clock:
    """This process's clock plus the last known difference to the server's."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now_ms(self) -> int:
        return int((time.time() + self._ahead_s) * 1000)

    def learn(self, server_us: int) -> None:
        self._ahead_s = server_us / 1e6 - time.time()


# Clocks may differ by this share in their rates, and by this much in their granularity.
_DRIFT, _GRAIN_S = 0.02, 0.02


def certain_s(ttl_s: float) -> float:
    """How long a key with this TTL certainly lives, from when it was asked for."""
    return ttl_s * (1 - _DRIFT) - _GRAIN_S


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
