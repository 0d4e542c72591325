"""Estimates the server's time, which stored times refer to, and measures durations."""

from __future__ import annotations

import time

# Servers restart and leave: older runs are forgotten with all others.
_MOST_RUNS = 1_000


class Clock:
    """Estimates the time of servers from what they have told."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._told: dict[bytes, tuple[int, float]] = {}  # by run of a server

    def now_ms(self) -> int:
        return int((time.time() + self._ahead_s) * 1000)

    def learn(self, server_us: int, run: bytes) -> None:
        self._ahead_s = server_us / 1e6 - time.time()
        if len(self._told) >= _MOST_RUNS:
            self._told.clear()
        self._told[run] = server_us, boot_clock()

    def passed_us(self, at: float, run: bytes) -> int:
        """A time that a run's server had certainly passed when `boot_clock` was `at`, us; 0: unknown."""
        server_us, told_at = self._told.get(run, (0, at))
        rate = 1 - _DRIFT if at > told_at else 1 + _DRIFT
        return max(server_us + int((at - told_at) * rate * 1e6), 0)


# Clocks may differ by this share in their rates, and by this much in their granularity.
_DRIFT, _GRAIN_S = 0.02, 0.02


def certain_s(ttl_s: float) -> float:
    """How long a key with this TTL certainly lives, from when it was asked for."""
    return ttl_s * (1 - _DRIFT) - _GRAIN_S


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
