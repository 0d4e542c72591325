"""How many jobs a worker may claim before it has a slot for them."""

from __future__ import annotations

from collections import deque

# The recent past: so many ends; with fewer nothing is claimed ahead.
_ENDS, _FEWEST = 64, 16
# What is claimed ahead should start within this.
_HORIZON_S = 0.1
# Slots that are taken for longer than this gain nothing from it.
_SLOW_S = 0.25


class ClaimAhead:
    """The pace at which jobs end, from when the recent ones did. Times are the loop's seconds."""

    def __init__(self, max_jobs: int) -> None:
        self._max_jobs = max_jobs
        self._ends: deque[float] = deque(maxlen=_ENDS)
        self.ended = self._ends.append

    def ahead(self, now: float) -> int:
        """As many jobs as would start within 0.1 s; none while the jobs are slow."""
        ends = self._ends
        if len(ends) < _FEWEST:
            return 0
        rate = len(ends) / max(1e-6, now - ends[0])
        return int(rate * _HORIZON_S) if self._max_jobs < rate * _SLOW_S else 0

    def broke(self) -> None:
        """What was claimed ahead did not start: the past is no guide any more."""
        self._ends.clear()
