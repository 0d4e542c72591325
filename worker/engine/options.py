"""What the engine can be told beyond arq's own arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arq.worker import Function, func

from worker.queue.policy import RetryPolicy


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """
    Times are seconds.

    lease_s: a dead worker's jobs are claimed anew after this; renewed at a third of it.
    retry: policy of jobs that name none; None keeps arq's rules (only `Retry` and cancellation).
    max_lost_leases: a job whose worker died this often while it ran is poison.
    park_s: how long a job of an unknown name waits for a worker that knows it.
    dead_max, dead_max_age_s: dead letters kept; the oldest go first.
    reserve: share of the claims that goes to the longest due job of any priority.
    poll_s: an idle worker looks at least this often, whatever woke it before.
    abort_poll_s: a worker with running jobs looks this often for marks of aborts.
    beat_s: time between two heartbeats.
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
