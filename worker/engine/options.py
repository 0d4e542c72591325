"""Options of the engine beyond arq's own arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arq.worker import Function, func

from worker.queue.policy import RetryPolicy


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """
    Times are seconds.

    lease_s: time after which a dead worker's jobs are claimed again; renewed every third of it.
    retry: policy of functions that have none; None keeps arq's rules (only `Retry` and
        cancellation are retried).
    max_lost_leases: a job whose workers died this often while it ran is poison.
    park_s: how long a job with an unknown function waits for a worker that has the function.
    dead_max, dead_max_age_s: limits of the dead letters; the oldest go first.
    reserve: share of the claims that goes to the job that is due longest, of any priority.
    poll_s: longest time between two polls of an idle worker.
    abort_poll_s: longest time between two polls of a worker with running jobs, which
        reads the abort marks.
    heartbeat_s: time between two heartbeats.
    cron_missed: "once" runs a tick that passed while no worker was up, "skip" does not.
    allow_eviction: run on a server that may evict jobs.
    """

    lease_s: float = 15.0
    retry: RetryPolicy | None = None
    max_lost_leases: int = 3
    park_s: float = 900.0
    dead_max: int = 10_000
    dead_max_age_s: float = 2_592_000.0
    reserve: float = 0.1
    poll_s: float = 3.0
    abort_poll_s: float = 0.5
    heartbeat_s: float = 5.0
    cron_missed: str = "once"
    allow_eviction: bool = False


@dataclass
class JobFunction(Function):
    """arq's `Function` with a retry policy of its own."""

    retry: RetryPolicy | None = None


def job(coroutine: Any, *, retry: RetryPolicy | None = None, **options: Any) -> JobFunction:
    """
    `arq.worker.func` with a retry policy; the other options are arq's.

    A `max_tries` given here wins over the policy's.
    """
    plain = func(coroutine, **options)
    return JobFunction(**{**vars(plain), "retry": retry})
