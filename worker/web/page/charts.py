"""
Lays out charts of the history: sums it up by steps of time, and turns that into points. Pure.

A quantile is known to its bucket only, so times have one line of the grid for each bucket's limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from worker.queue.series import BUCKETS, LIMITS_MS, Counts, Times
from worker.queue.series_reader import Span

WIDTH, HEIGHT = 600, 120
_NAMES = {"retried": "retried", "dead": "dead", "lapsed": "lost worker"}
# Of the attempts at an endpoint: such a delivery counts as aborted.
ATTEMPT_NAMES = {**_NAMES, "aborted": "disabled"}
# Of LLM requests: canceled ones count as aborted, those that wait for another batch as retried.
REQUEST_NAMES = {"retried": "given back", "dead": "failed", "aborted": "canceled"}
_KINDS = ("half", "most")
_LABELED_MS = (1, 10, 100, 1_000, 10_000, 300_000, 3_600_000)


@dataclass(slots=True)
class Step:
    """What ended within one step of time."""

    start: datetime
    ends: Counter[str] = field(default_factory=Counter)
    run: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    wait: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def add(self, counts: Counts) -> None:
        for outcome in ("completed", "retried", "dead", "aborted", "lapsed"):
            self.ends[outcome] += getattr(counts, outcome)
        for mine, times in ((self.run, counts.run), (self.wait, counts.wait)):
            for bucket, count in enumerate(times.counts):
                mine[bucket] += count


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a column, in the units of the drawing. `kind` gives its color."""

    x: float
    y: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one line, as an SVG path."""

    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at a height of the drawing."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, its description, and the same as a table: `columns`, and a row for each step."""

    key: str
    title: str
    summary: str
    columns: Sequence[str]
    kinds: Sequence[str]
    rows: Sequence[tuple[datetime, Sequence[str]]]
    ticks: Sequence[Tick]
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()


class CountedHistory(Protocol):
    """What any history has of its time."""

    @property
    def spans(self) -> Sequence[Span]: ...


class Timeline:
    """The steps between two times."""

    def __init__(self, begin_s: int, end_s: int, step_s: int) -> None:
        self._step_s = step_s
        self._first = begin_s // step_s
        self.steps = [
            Step(datetime.fromtimestamp(at * step_s, UTC))
            for at in range(self._first, end_s // step_s + 1)
        ]

    def add(self, histories: Iterable[CountedHistory]) -> None:
        for history in histories:
            for span in history.spans:
                at = int(span.start.timestamp()) // self._step_s - self._first
                if 0 <= at < len(self.steps):
                    self.steps[at].add(span.counts)

    def charts(
        self, completed: str = "Completed jobs", names: dict[str, str] = _NAMES
    ) -> list[Chart]:
        """Rate, failures, wait and run times; none where nothing ended. names: of the failures."""
        if not any(step.ends.total() for step in self.steps):
            return []
        return [
            self._counted("rate", completed, {"completed": "completed"}),
            self._counted("failures", "Failures", names),
            self._timed("wait", "Waiting time"),
            self._timed("run", "Run time"),
        ]

    def _counted(self, key: str, title: str, names: dict[str, str]) -> Chart:
        totals = [sum(step.ends[name] for name in names) for step in self.steps]
        top = _round_up(max(totals))
        width = WIDTH / len(self.steps)
        bars = []
        for at, step in enumerate(self.steps):
            y = float(HEIGHT)
            for name in names:
                height = step.ends[name] / top * HEIGHT
                y -= height
                if height:
                    bars.append(Bar(at * width, y, max(0.5, width - 1), height, name))
        return Chart(
            key,
            title,
            f"{sum(totals):,} in all; most in one step: {max(totals):,}.",
            list(names.values()),
            list(names),
            [(step.start, [f"{step.ends[name]:,}" for name in names]) for step in self.steps],
            [Tick(HEIGHT, "0"), Tick(HEIGHT / 2, f"{top / 2:,g}"), Tick(0, f"{top:,}")],
            bars=bars,
        )

    def _timed(self, key: str, title: str) -> Chart:
        found = [
            [_bucket(getattr(step, key), share) for step in self.steps] for share in (0.5, 0.95)
        ]
        worst = max((bucket for bucket in found[1] if bucket is not None), default=None)
        return Chart(
            key,
            title,
            "No times." if worst is None else f"Slowest step: 95 % within {_limit(worst)}.",
            ["half within", "95 % within"],
            _KINDS,
            [
                (step.start, ["" if at is None else _limit(at) for at in pair])
                for step, *pair in zip(self.steps, *found, strict=True)
            ],
            [Tick(_height(LIMITS_MS.index(ms)), _text(ms)) for ms in _LABELED_MS],
            lines=[
                Line(kind, self._path(buckets)) for kind, buckets in zip(_KINDS, found, strict=True)
            ],
        )

    def _path(self, buckets: Sequence[int | None]) -> str:
        """A level for each step; a step without times is a gap."""
        width = WIDTH / len(buckets)
        parts, was_drawn = [], False
        for at, bucket in enumerate(buckets):
            if bucket is not None:
                y = _height(bucket)
                parts.append(
                    f"{'L' if was_drawn else 'M'}{at * width:.1f} {y:.1f}H{(at + 1) * width:.1f}"
                )
            was_drawn = bucket is not None
        return "".join(parts)


def quantile(times: Times, share: float) -> str:
    """The time within which this share was, as text; "" without times."""
    at = _bucket(times.counts, share)
    return "" if at is None else _limit(at)


def summed(times: Iterable[Times]) -> Times:
    """One histogram of several."""
    found = list(times)
    counts = tuple(map(sum, zip(*(each.counts for each in found), strict=True)))
    return Times(counts or (0,) * BUCKETS, sum(each.total_s for each in found))


def _bucket(counts: Sequence[int], share: float) -> int | None:
    left = share * sum(counts)
    for at, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            return at
    return None


def _height(bucket: int) -> float:
    return HEIGHT - bucket / (BUCKETS - 1) * HEIGHT


def _limit(bucket: int) -> str:
    return _text(LIMITS_MS[bucket]) if bucket < len(LIMITS_MS) else f"over {_text(LIMITS_MS[-1])}"


def _text(ms: int) -> str:
    for unit, size in (("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if ms >= size:
            return f"{ms // size} {unit}"
    return f"{ms} ms"


def _round_up(count: int) -> int:
    """The next number of a form that reads well, at least 2."""
    size = 1
    while True:
        for factor in (2, 4, 10):
            if factor * size >= count:
                return factor * size
        size *= 10
