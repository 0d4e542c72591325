"""
The form in which history is stored: rows of counts, one for each minute, hour and all time.

worker/queue/lua/_series.lua writes them. A series, such as "<priority>:<function>", has a
string of 60 rows for each hour, a string of 24 rows for each day, and one row for its total.
The hour and the total do not yet contain the row of the current minute.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

# Outcomes by number, from 1, which is the order of their cells in a row.
OUTCOMES = ("completed", "retried", "dead", "aborted", "given_back", "parked", "lapsed")
# Upper limits of the buckets of run and wait times, ms. One more bucket has what is longer.
LIMITS_MS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000),
    *(60_000, 120_000, 300_000, 900_000, 3_600_000),
)
BUCKETS = len(LIMITS_MS) + 1
_LIMITS_S = [limit / 1000 for limit in LIMITS_MS]
_LEAST_S = _LIMITS_S[0]
# Sums of run and wait times in us, eight outcomes of which the last is free, two histograms.
_ROW = struct.Struct(f">QQ8I{BUCKETS}I{BUCKETS}I")
_RUN = 2 + 8
_WAIT = _RUN + BUCKETS


@dataclass(frozen=True, slots=True)
class Times:
    """A histogram of times: how many were up to each of `LIMITS_MS`, and how many were longer."""

    counts: tuple[int, ...]
    total_s: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile_s(self, share: float) -> float | None:
        """
        Return the limit up to which this share of the times is; inf for the last bucket.

        None if there are no times.
        """
        left = share * self.count
        for limit, count in zip([*_LIMITS_S, float("inf")], self.counts, strict=True):
            left -= count
            if count and left <= 0:
                return limit
        return None


@dataclass(frozen=True, slots=True)
class Counts:
    """
    How runs ended. Jobs that were retried, given back or parked continued; leases lapsed.

    run: how long the runs took that were completed, retried, dead or aborted.
    wait: from the due time of these runs to their start.
    """

    completed: int
    retried: int
    dead: int
    aborted: int
    given_back: int
    parked: int
    lapsed: int
    run: Times
    wait: Times

    def __bool__(self) -> bool:
        """Whether anything was counted."""
        return any(getattr(self, outcome) for outcome in OUTCOMES)


def number_of_outcome(name: str) -> int:
    """The number of an outcome, as the scripts know it."""
    return OUTCOMES.index(name) + 1


def bucket_of(seconds: float) -> int:
    """The number of a time's bucket."""
    return bisect_left(_LIMITS_S, seconds) if seconds > _LEAST_S else 0


def read_counts(*rows: bytes) -> Counts:
    """Add up rows as they are stored."""
    cells = [sum(column) for column in zip(*map(_ROW.unpack, rows), strict=True)]
    run = Times(tuple(cells[_RUN:_WAIT]), cells[0] / 1e6)
    wait = Times(tuple(cells[_WAIT:]), cells[1] / 1e6)
    return Counts(**dict(zip(OUTCOMES, cells[2:], strict=False)), run=run, wait=wait)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one length of time: `per_key` of them, of `minutes` each, are in one string."""

    minutes: int
    per_key: int
    keep_minutes: int

    def times(self, begin: int, end: int) -> range:
        """The times from one Unix minute to another, of those that are kept."""
        last = end // self.minutes
        first = last - self.keep_minutes // self.minutes + 1
        return range(max(begin // self.minutes, first), last + 1)

    def parts(self, times: range) -> Iterator[tuple[int, range]]:
        """The strings of these times by number, and which of their times are wanted."""
        for number in range(times.start // self.per_key, -(-times.stop // self.per_key)):
            start = number * self.per_key
            yield number, range(max(times.start, start), min(times.stop, start + self.per_key))

    def span(self, times: range) -> tuple[int, int]:
        """First and last byte of the rows of these times, which are in one string."""
        first = times.start % self.per_key * _ROW.size
        return first, first + len(times) * _ROW.size - 1


MINUTES = Rows(1, 60, 24 * 60)
HOURS = Rows(60, 24, 30 * 24 * 60)
ROW_SPAN = (0, _ROW.size - 1)


def rows_of(data: bytes, count: int) -> list[bytes]:
    """Read rows of a string, whose last empty rows may be missing."""
    padded = data.ljust(count * _ROW.size, b"\0")
    return [padded[at : at + _ROW.size] for at in range(0, count * _ROW.size, _ROW.size)]
