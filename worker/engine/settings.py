"""Settings that a worker's components take from its arguments."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from arq.jobs import Deserializer, Serializer

from worker.engine.options import EngineOptions

Hook = Callable[[dict[Any, Any]], Awaitable[Any]]


class Observer(Protocol):
    """Called once at the end of each run, for metrics. Times are seconds."""

    def job_ended(
        self, *, task: str, queue: str, outcome: str, run_s: float, queue_s: float
    ) -> None:
        """`outcome`: completed, retried, dead, aborted, given_back, parked or late."""


@dataclass(slots=True)
class RunSettings:
    """The worker's arguments; `max_tries` and times mean what they mean in `arq.worker.Worker`."""

    functions: Mapping[str, Any]
    ctx: dict[Any, Any]
    options: EngineOptions
    worker_id: str
    queue_names: list[str]
    unique_prefix: str  # of unique keys
    serializer: Serializer
    deserializer: Deserializer
    job_timeout_s: float | None
    keep_result_s: float
    keep_result_forever: bool
    max_tries: int
    retry_jobs: bool
    allow_abort_jobs: bool
    park_s: float
    on_job_start: Hook | None = None
    on_job_end: Hook | None = None
    after_job_end: Hook | None = None
    observer: Observer | None = None
    rng: Callable[[], float] = field(default=random.random)
