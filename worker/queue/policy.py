"""Whether a failed job runs again, and when. Pure: time and randomness are handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker import backoff
from worker.errors import Permanent, Undecodable


@dataclass(frozen=True, slots=True)
class Again:
    """Run it again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Dead:
    """Never again; `reason` is `permanent`, `undecodable`, `exhausted` or `expired`."""

    reason: str


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    Exponential backoff with full jitter. Times are seconds.

    max_tries: runs that may fail before the job is a dead letter.
    base_s, cap_s: the n-th retry waits between 0 and min(cap, base * 2 ** (n - 1)).
    max_age_s: no retry would start this long after the enqueue, None for no limit.
    permanent: exceptions that are never retried, besides `worker.errors.Permanent`.
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
        What follows the `tries`-th failed run (1 is the first) of a job `age_s` old.

        `rng` gives a float in [0, 1); `max_tries` is the job's own limit.
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
