"""Decides how many jobs a worker may claim before it has free slots for them. Pure."""

from __future__ import annotations

from collections import deque

# The rate is measured over this many recent ends, and is unknown below the second number.
_ENDS, _FEWEST = 64, 16
# A job claimed ahead should start within this time.
_HORIZON_S = 0.1
# When jobs hold their slots longer than this, claiming ahead gains nothing.
_SLOW_S = 0.25


class ClaimAhead:
    """Measures the rate at which jobs end. Times are the loop's seconds."""

    def __init__(self, max_jobs: int) -> None:
        self._max_jobs = max_jobs
        self._ends: deque[float] = deque(maxlen=_ENDS)
        self.ended = self._ends.append

    def ahead(self, now: float) -> int:
        """Return how many jobs would start within 0.1 s; 0 while jobs are slow."""
        ends = self._ends
        if len(ends) < _FEWEST:
            return 0
        rate = len(ends) / max(1e-6, now - ends[0])
        return int(rate * _HORIZON_S) if self._max_jobs < rate * _SLOW_S else 0

    def reset(self) -> None:
        """Forget the rate: jobs claimed ahead did not start in time."""
        self._ends.clear()
