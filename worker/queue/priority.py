"""Defines the four priorities of a job."""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """The order in which jobs run when more are due than the workers can run."""

    CRITICAL = "critical"
    HIGH = "high"
    DEFAULT = "default"
    LOW = "low"
