"""What one client asks of the jobs that it stores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConfirmOptions:
    """How many replicas must have a job, for how long a call waits for them, and what if not."""

    replicas: int = 0
    timeout_s: float = 1.0
    required: bool = False


@dataclass(frozen=True, slots=True)
class JobOptions:
    """
    What an enqueue refuses. `max_length` and `max_memory_share` are off at 0.

    `max_memory_share` is a share of the server's maxmemory, 0 to 1. `confirm`: replicas to wait for.
    """

    max_job_bytes: int
    max_length: int
    max_memory_share: float
    confirm: ConfirmOptions
