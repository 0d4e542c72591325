"""Reads how jobs ended: counts, run times and wait times by function, priority and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from worker.errors import InvalidArgument
from worker.keys import QueueKeys
from worker.numbers import whole
from worker.queue.arguments import require_name, require_priority, unix_ms
from worker.queue.job import reach
from worker.queue.priority import Priority
from worker.queue.series import HOURS, MINUTES, ROW_SPAN, Counts, Rows, read_counts, rows_of

Step = Literal["minute", "hour"]
# Series of one round trip: the minutes of a day are 300 KB each.
_PAGE = 8
_READS = 5
_DEFAULT_MINUTES = 60


@dataclass(frozen=True, slots=True)
class Span:
    """The counts of the minute or hour that began at `start`."""

    start: datetime
    counts: Counts


@dataclass(frozen=True, slots=True)
class FunctionHistory:
    """
    The history of one function at one priority. `spans` leaves out those without counts.

    `counts` is the sum of the spans. `total` goes back to the first end that followed 30 days
    without one.
    """

    function: str
    priority: Priority
    total: Counts
    counts: Counts
    spans: list[Span]


_Series = tuple[Priority, str]


class History:
    """Reads the series through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    async def read(
        self,
        *,
        function: str | None = None,
        priority: Priority | None = None,
        since: datetime | None = None,
        step: Step | None = None,
    ) -> list[FunctionHistory]:
        """
        Return the history of each function at each priority, by their names.

        since: by default an hour ago. step: by default minutes for the last 24 hours, and
        hours for more, up to 30 days. Functions beyond the first 128 pairs of function and
        priority share `<other>`; jobs whose function no worker knows are in `<unknown>`.

        Raises:
            InvalidArgument: no name, no priority, a time without a zone, or an unknown step.
        """
        if function is not None:
            require_name("function", function)
        only = None if priority is None else require_priority(priority)
        if step not in (None, "minute", "hour"):
            raise InvalidArgument(f"step must be 'minute' or 'hour', not {step!r}")
        begin = None if since is None else unix_ms("since", since) // 60_000
        seconds, _ = await reach(self._client.time())
        now = seconds // 60
        if begin is None:
            begin = now - _DEFAULT_MINUTES
        is_long = now - begin > MINUTES.keep_minutes
        rows = HOURS if step == "hour" or (step is None and is_long) else MINUTES
        wanted = [
            each
            for each in await self._series()
            if only in (None, each[0]) and function in (None, each[1])
        ]
        found: list[FunctionHistory] = []
        for at in range(0, len(wanted), _PAGE):
            found += await self._read(wanted[at : at + _PAGE], rows, rows.times(begin, now))
        return found

    async def totals(self) -> list[FunctionHistory]:
        """Return the total of each function at each priority, without spans: a small read."""
        return await self._read(await self._series(), MINUTES, range(0))

    async def _series(self) -> list[_Series]:
        members = await reach(self._client.zrange(self._keys.history, 0, -1))
        found = [member.decode(errors="replace").partition(":") for member in members]
        known = set(Priority)
        pairs = [(Priority(first), name) for first, _, name in found if first in known]
        return sorted(pairs, key=lambda pair: (pair[1], list(Priority).index(pair[0])))

    async def _read(
        self, wanted: Sequence[_Series], rows: Rows, times: range
    ) -> list[FunctionHistory]:
        """Read these series together. One whose minute ends meanwhile is read again."""
        found: dict[_Series, FunctionHistory] = {}
        left = list(wanted)
        for _ in range(_READS):
            if not left:
                break
            members = [f"{priority.value}:{name}" for priority, name in left]
            lasts = await reach(self._client.zmscore(self._keys.history, members))
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.zmscore(self._keys.history, members)
                for member, last in zip(members, lasts, strict=True):
                    for key, first, end in self._pieces(member, whole(last), rows, times):
                        pipe.getrange(key, first, end)
                lasts_now, *data = await reach(pipe.execute(raise_on_error=False))
            count = len(data) // len(left)
            again = []
            for at, (series, last) in enumerate(zip(left, lasts, strict=True)):
                if last is not None and last == lasts_now[at]:
                    mine = data[at * count : (at + 1) * count]
                    found[series] = _history(series, whole(last), rows, times, mine)
                elif lasts_now[at] is not None:
                    again.append(series)
            left = again
        return [found[series] for series in wanted if series in found]

    def _pieces(
        self, member: str, last: int, rows: Rows, times: range
    ) -> Iterator[tuple[str, int, int]]:
        """Key and bytes of the total, of the minute that is counted in, and of each wanted part."""
        keys = self._keys
        yield keys.history_total(member), *ROW_SPAN
        hour = last // MINUTES.per_key
        yield keys.history_minutes(hour, member), *MINUTES.span(range(last, last + 1))
        name = keys.history_minutes if rows is MINUTES else keys.history_hours
        for number, part in rows.parts(times):
            yield name(number, member), *rows.span(part)


def _history(
    series: _Series, last: int, rows: Rows, times: range, pieces: Sequence[Any]
) -> FunctionHistory:
    # A key of another type is an error in its place: nothing was counted there.
    texts = [piece if isinstance(piece, bytes) else b"" for piece in pieces]
    (total,), (open_minute,) = rows_of(texts[0], 1), rows_of(texts[1], 1)
    spans, every = [], [bytes(ROW_SPAN[1] + 1)]
    for text, (_, part) in zip(texts[2:], rows.parts(times), strict=True):
        for time, row in zip(part, rows_of(text, len(part)), strict=True):
            is_open = rows is HOURS and time == last // HOURS.minutes
            mine = [row, open_minute] if is_open else [row]
            every += mine
            counts = read_counts(*mine)
            if counts:
                start = datetime.fromtimestamp(time * rows.minutes * 60, UTC)
                spans.append(Span(start, counts))
    priority, function = series
    return FunctionHistory(
        function, priority, read_counts(total, open_minute), read_counts(*every), spans
    )
