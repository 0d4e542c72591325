"""What every job gets first: arq's `ctx`. A feature's own context lies in it under the feature's key."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

JobContext = Mapping[str, Any]


def utc_now() -> datetime:
    return datetime.now(UTC)
