"""Decides whether and when a failed job runs again. Pure: time and randomness are arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker import backoff
from worker.errors import Permanent, Undecodable


@dataclass(frozen=True, slots=True)
class Again:
    """Run the job again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Dead:
    """Do not run it again. `reason` is permanent, undecodable, exhausted or expired."""

    reason: str


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    Exponential backoff with full jitter. Times are seconds.

    max_tries: failed runs after which the job is a dead letter.
    base_s, cap_s: the n-th retry waits from 0 to min(cap_s, base_s * 2 ** (n - 1)).
    max_age_s: no retry starts later than this after the enqueue; None: no limit.
    permanent: exceptions that are not retried, in addition to `worker.errors.Permanent`.
    """

    max_tries: int = 5
    base_s: float = 2.0
    cap_s: float = 600.0
    max_age_s: float | None = None
    permanent: tuple[type[BaseException], ...] = ()

    def decide(
        self,
        error: BaseException,
        *,
        tries: int,
        age_s: float,
        rng: Callable[[], float],
        max_tries: int | None = None,
    ) -> Again | Dead:
        """
        Decide after a job's failed run number `tries`, from 1. The job is `age_s` old.

        `rng` returns a float in [0, 1). `max_tries` is the job's own limit.
        """
        if isinstance(error, Undecodable):
            return Dead("undecodable")
        if isinstance(error, (Permanent, *self.permanent)):
            return Dead("permanent")
        if tries >= (self.max_tries if max_tries is None else max_tries):
            return Dead("exhausted")
        delay_s = rng() * self.ceiling_s(tries)
        if self.max_age_s is not None and age_s + delay_s > self.max_age_s:
            return Dead("expired")
        return Again(delay_s)

    def ceiling_s(self, tries: int) -> float:
        """The longest wait after the `tries`-th failed run."""
        return backoff.ceiling_s(tries, base_s=self.base_s, cap_s=self.cap_s)
