"""
Watches the timeouts of running jobs, with one timer for all jobs of one timeout.

A timer per job would cost most short jobs more than their run. Jobs with equal
timeouts fall due in the order in which they start, so the timer waits for the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from worker.engine.records import Claim


class Deadlines:
    """Calls `late` with each claim that is still watched at its deadline."""

    def __init__(self, late: Callable[[Claim], None]) -> None:
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._watched: dict[float, dict[bytes, Claim]] = {}
        self._timers: dict[float, asyncio.TimerHandle] = {}

    def watch(self, claim: Claim, timeout_s: float, now: float) -> None:
        """Watch a claim from `now` (the loop's time); sets its deadline."""
        claim.deadline = now + timeout_s
        claim.timeout_s = timeout_s
        watched = self._watched.get(timeout_s)
        if watched is None:
            watched = self._watched[timeout_s] = {}
        watched[claim.token] = claim
        if timeout_s not in self._timers:
            self._arm(timeout_s, claim.deadline)

    def forget(self, claim: Claim) -> None:
        watched = self._watched.get(claim.timeout_s)
        if watched is not None:
            watched.pop(claim.token, None)

    def close(self) -> None:
        """Cancel every timer; `late` is not called again."""
        for timer in self._timers.values():
            timer.cancel()

    @property
    def is_idle(self) -> bool:
        """Whether no timer is set and no claim is watched."""
        return not self._timers and not self._watched

    def _arm(self, timeout_s: float, at: float) -> None:
        self._timers[timeout_s] = self._loop.call_at(at, self._look, timeout_s)

    def _look(self, timeout_s: float) -> None:
        now = self._loop.time()
        watched = self._watched[timeout_s]
        for claim in list(watched.values()):
            if claim.deadline > now:
                self._arm(timeout_s, claim.deadline)
                return
            del watched[claim.token]
            self._late(claim)
        del self._timers[timeout_s], self._watched[timeout_s]
