"""Checks how often a repeating job runs, and computes its next run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cronsim import CronSim, CronSimError

from worker.errors import InvalidArgument
from worker.queue.arguments import MAX_DELAY_S, require_name

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_SHORTEST_S = 0.01


def require_rhythm(every_s: Any, cron: Any) -> None:
    """
    Raises:
        InvalidArgument: neither or both are given, the interval is out of range, or the
            expression is wrong or can never be due.
    """
    if (every_s is None) == (cron is None):
        raise InvalidArgument("give every_s or cron, not both and not neither")
    if every_s is not None:
        is_number = isinstance(every_s, int | float) and not isinstance(every_s, bool)
        if not is_number or not _SHORTEST_S <= every_s <= MAX_DELAY_S:
            raise InvalidArgument(
                f"every_s must be from {_SHORTEST_S} to {MAX_DELAY_S:.0f} seconds, not {every_s!r}"
            )
    if cron is not None:
        require_name("cron", cron, longest=256)
        next_tick(cron, datetime.now(UTC))


def next_tick(expression: str, after: datetime) -> datetime:
    """
    Return the first tick of a cron expression after `after`. Its fields are UTC.

    Raises:
        InvalidArgument: the expression is wrong, or it is not due within 50 years.
    """
    try:
        tick = next(CronSim(expression, after.astimezone(UTC)), None)
    except CronSimError as exc:
        raise InvalidArgument(f"{expression!r} is not a cron expression: {exc}") from None
    if tick is None:
        raise InvalidArgument(f"{expression!r} is never due")
    return tick


def next_run_ms(row: Mapping[str, Any], due: int, now: int) -> int:
    """
    Return a schedule's first run after both `due` and `now`; missed ticks run as one.

    Raises:
        InvalidArgument: the row's expression is wrong.
    """
    if row.get("cron"):
        return to_ms(next_tick(row["cron"], from_ms(max(due, now))))
    every: int = row["every"]
    return due + every * max(1, (now - due) // every + 1)


def from_ms(moment_ms: int) -> datetime:
    """A moment of Unix ms, in UTC, without the rounding of floats."""
    return _EPOCH + moment_ms * _MS


def to_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS
