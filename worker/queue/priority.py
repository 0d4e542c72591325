"""The four priorities of a job."""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """How soon a job is taken when there are more than the workers can run."""

    CRITICAL = "critical"
    HIGH = "high"
    DEFAULT = "default"
    LOW = "low"
