"""Reads series of counts: all series of one kind of history together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from worker.errors import InvalidArgument
from worker.keys import SeriesKeys
from worker.numbers import whole
from worker.queue.arguments import unix_ms
from worker.queue.job import reach
from worker.queue.series import HOURS, MINUTES, ROW_SPAN, Counts, Rows, read_counts, rows_of

Step = Literal["minute", "hour"]
# The series that those share which are too many for one of their own.
OTHER = "<other>"
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
class Found:
    """
    What is stored of a series. `spans` leaves out those without counts.

    `counts` is the sum of the spans. `total` goes back to the first end that followed 30 days
    without one.
    """

    total: Counts
    counts: Counts
    spans: list[Span]


class SeriesReader:
    """Reads one kind of history through one client."""

    def __init__(self, client: Any, keys: SeriesKeys) -> None:
        self._client = client
        self._keys = keys

    async def names(self) -> list[str]:
        members = await reach(self._client.zrange(self._keys.index, 0, -1))
        return [member.decode(errors="replace") for member in members]

    async def read(
        self, names: Sequence[str], since: datetime | None, step: Step | None
    ) -> dict[str, Found]:
        """
        Return what is stored of the series that exist.

        since: by default an hour ago. step: by default minutes for the last 24 hours, and
        hours for more, up to 30 days.

        Raises:
            InvalidArgument: a time without a zone, or an unknown step.
        """
        check_window(since, step)
        begin = None if since is None else unix_ms("since", since) // 60_000
        seconds, _ = await reach(self._client.time())
        now = seconds // 60
        if begin is None:
            begin = now - _DEFAULT_MINUTES
        is_long = now - begin > MINUTES.keep_minutes
        rows = HOURS if step == "hour" or (step is None and is_long) else MINUTES
        return await self._read(names, rows, rows.times(begin, now))

    async def totals(self, names: Sequence[str]) -> dict[str, Found]:
        """Return the totals of the series that exist, without spans: a small read."""
        return await self._read(names, MINUTES, range(0))

    async def _read(self, names: Sequence[str], rows: Rows, times: range) -> dict[str, Found]:
        found: dict[str, Found] = {}
        for at in range(0, len(names), _PAGE):
            found |= await self._read_page(names[at : at + _PAGE], rows, times)
        return found

    async def _read_page(self, names: Sequence[str], rows: Rows, times: range) -> dict[str, Found]:
        """Read these series together. One whose minute ends meanwhile is read again."""
        found: dict[str, Found] = {}
        left = list(names)
        for _ in range(_READS):
            if not left:
                break
            index = self._keys.index
            lasts = await reach(self._client.zmscore(index, left))
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.zmscore(index, left)
                for name, last in zip(left, lasts, strict=True):
                    for key, first, end in self._pieces(name, whole(last), rows, times):
                        pipe.getrange(key, first, end)
                lasts_now, *data = await reach(pipe.execute(raise_on_error=False))
            count = len(data) // len(left)
            again = []
            for at, (name, last) in enumerate(zip(left, lasts, strict=True)):
                if last is not None and last == lasts_now[at]:
                    mine = data[at * count : (at + 1) * count]
                    found[name] = _found(whole(last), rows, times, mine)
                elif lasts_now[at] is not None:
                    again.append(name)
            left = again
        return found

    def _pieces(
        self, name: str, last: int, rows: Rows, times: range
    ) -> Iterator[tuple[str, int, int]]:
        """Key and bytes of the total, of the minute that is counted in, and of each wanted part."""
        keys = self._keys
        yield keys.total(name), *ROW_SPAN
        hour = last // MINUTES.per_key
        yield keys.minutes(hour, name), *MINUTES.span(range(last, last + 1))
        key_of = keys.minutes if rows is MINUTES else keys.hours
        for number, part in rows.parts(times):
            yield key_of(number, name), *rows.span(part)


def check_window(since: datetime | None, step: Step | None) -> None:
    """
    Raises:
        InvalidArgument: a time without a zone, or an unknown step.
    """
    if step not in (None, "minute", "hour"):
        raise InvalidArgument(f"step must be 'minute' or 'hour', not {step!r}")
    if since is not None:
        unix_ms("since", since)


def _found(last: int, rows: Rows, times: range, pieces: Sequence[Any]) -> Found:
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
    return Found(read_counts(total, open_minute), read_counts(*every), spans)
