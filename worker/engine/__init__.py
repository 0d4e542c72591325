"""The engine: arq's Worker API on leases, so that no acknowledged job is lost."""

from __future__ import annotations

from worker.engine.options import EngineOptions, JobFunction, job
from worker.engine.state import new_worker_id
from worker.engine.worker import Worker
from worker.queue.policy import RetryPolicy

__all__ = ["EngineOptions", "JobFunction", "RetryPolicy", "Worker", "job", "new_worker_id"]
