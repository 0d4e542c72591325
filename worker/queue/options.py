"""Limits of the jobs that one client stores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobOptions:
    """
    What an enqueue refuses. `max_length` and `max_memory_share` are off at 0.

    `max_memory_share` is a share of the server's maxmemory, 0 to 1.
    """

    max_job_bytes: int
    max_length: int
    max_memory_share: float
