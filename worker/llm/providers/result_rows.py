"""
Reads the rows of a provider's results: JSON objects, usually one on each line.

Time is linear in the size of the results, and no step holds the event loop for long. A row that is
over 256 KiB, or over 16 KiB and slow to decode, is not decoded here but kept in pieces, and only
its outline is read. A row that is no JSON is returned as it came, and affects no other row.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from worker.http.scrub import scrub
from worker.llm.answers import MALFORMED, Answer, LongText, unreadable
from worker.llm.json_text import UnreadableJSON, decode_at_once, is_blank
from worker.llm.providers.nameless import end_of_nameless, is_empty_of_answers
from worker.llm.providers.open_row import ID_BYTES, OpenRow, ResultRow, ids_in

_SHORT_BYTES = 262_144
# What is read between two looks at the clock, and the time after which other tasks may run.
_FIRST_BYTES, _STEP_BYTES, _TURN_S = 1024, 16_384, 0.005
# 64 MiB for an answer, and some for what is around it.
MOST_ROW_BYTES = 65 * 1024 * 1024


async def rows_in(
    pieces: AsyncIterable[bytes], hidden: tuple[bytes, ...]
) -> AsyncIterator[ResultRow]:
    """Read the rows of results that arrive in pieces; other tasks run every few milliseconds."""
    reader, begun = RowReader(hidden), time.monotonic()
    async for piece in pieces:
        for at in range(0, len(piece), _STEP_BYTES):
            for row in reader.feed(piece[at : at + _STEP_BYTES]):
                if row is not None:
                    yield row
                begun = await turn(begun)
            begun = await turn(begun)
    for row in reader.end():
        if row is not None:
            yield row
        begun = await turn(begun)


async def turn(begun: float) -> float:
    """Let other tasks run if they have waited since `begun` for long; returns when they last could."""
    if time.monotonic() - begun < _TURN_S:
        return begun
    await asyncio.sleep(0)
    return time.monotonic()


class RowReader:
    """
    Takes results in pieces; `hidden` are our secrets, which a provider may repeat.

    Between rows it yields None, where other tasks may run.
    """

    def __init__(self, hidden: tuple[bytes, ...], *, most: int = MOST_ROW_BYTES) -> None:
        self._hidden = hidden
        self._most = most
        self._line: list[bytes] = []  # the line so far, unless it belongs to `_open`
        self._size = 0
        self._open: OpenRow | None = None  # an object that has not ended
        self._joined = False  # whether the line belongs to it

    def feed(self, piece: bytes) -> Iterator[ResultRow | None]:
        """Take a piece; yields the rows that it ends."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            yield from self._take(part)
            yield from self._end_line()
        if rest:
            yield from self._take(rest)

    def end(self) -> Iterator[ResultRow | None]:
        """The results have ended."""
        yield from self._end_line()
        if self._open is not None:
            yield self._given_up(self._open)

    def _take(self, part: bytes) -> Iterator[ResultRow | None]:
        if self._joined:
            yield from self._extend(part)
            return
        self._line.append(part)
        self._size += len(part)
        if self._size > _SHORT_BYTES:
            yield from self._begin_long()

    def _begin_long(self) -> Iterator[ResultRow | None]:
        line = self._taken()
        if self._open is not None and _begins_row(line):
            yield self._given_up(self._open)
        self._joined = True
        yield from self._extend(line)

    def _extend(self, part: bytes) -> Iterator[ResultRow | None]:
        """Take more of a line that is read object by object."""
        at, step, leap = 0, _FIRST_BYTES, _FIRST_BYTES
        while at < len(part):
            if self._open is None:
                begin = part.find(b"{", at)
                if begin < 0:
                    self._joined = False
                    yield from self._between(part[at:])
                    return
                passed = end_of_nameless(part, at, at + leap)
                if passed > at:
                    yield self._nameless(part[at:passed])
                    at, leap = passed, min(_STEP_BYTES, 2 * leap)
                    continue
                self._open = OpenRow(self._hidden, self._most, before=part[at:begin])
                at, step, leap = begin, _FIRST_BYTES, _FIRST_BYTES
            at += self._open.feed(part[at : at + step])
            # What follows a short object must not be looked at again for each of them.
            step = min(_STEP_BYTES, 2 * step)
            yield None
            if self._open.outline.is_done:
                row = self._open.row()
                yield row
                if row.row is not None and "custom_id" not in row.row:
                    yield self._nameless(self._open.before)
                if self._open.is_headless:  # what follows belongs to it too
                    following = part.find(b"{", at)
                    at = len(part) if following < 0 else following
                self._open = None
        self._joined = self._open is not None

    def _nameless(self, text: bytes) -> ResultRow | None:
        """What came where no request is named; None for JSON, which answers none."""
        if is_empty_of_answers(text):
            return None
        return ResultRow(None, len(text), (), scrub(text, self._hidden))

    def _between(self, text: bytes) -> Iterator[ResultRow | None]:
        """Take what follows the last object, or a part of a line that has none."""
        if len(text) > _SHORT_BYTES:
            came, text = text[:-ID_BYTES], text[-ID_BYTES:]  # an id may go on in the next part
            if not is_blank(came):
                yield ResultRow(None, len(came), tuple(ids_in(came)), scrub(came, self._hidden))
        self._line, self._size = [text], len(text)

    def _end_line(self) -> Iterator[ResultRow | None]:
        if self._joined and self._open is not None:
            self._joined = False  # it goes on, unless the next line begins a row
            self._open.feed(b"\n")
            return
        line = self._taken()
        if not line.strip():
            return
        if self._open is not None:
            if not _begins_row(line):
                yield from self._read_objects(line)
                return
            yield self._given_up(self._open)
        yield from self._whole(line)

    def _whole(self, line: bytes) -> Iterator[ResultRow | None]:
        """Read a line of at most 256 KiB: at once if that is quick, else object by object."""
        text = scrub(line, self._hidden)
        try:
            value = decode_at_once(text)
        except UnreadableJSON:
            if b"{" in line:
                yield from self._read_objects(line)
            elif not is_blank(text):
                yield ResultRow(None, len(text), tuple(ids_in(text)), text)
            return
        rows = value if isinstance(value, list) else [value]
        named = [row for row in rows if isinstance(row, Mapping) and "custom_id" in row]
        yield from (ResultRow(row, len(line)) for row in named)
        if len(named) < len(rows):
            known = {str(row["custom_id"]) for row in named}
            if ids := ids_in(text) - known:
                yield ResultRow(None, len(text), tuple(ids), text)

    def _read_objects(self, line: bytes) -> Iterator[ResultRow | None]:
        self._joined = True
        yield from self._extend(line)
        yield from self._end_line()

    def _given_up(self, row: OpenRow) -> ResultRow:
        self._open, self._joined = None, False
        return row.broken()

    def _taken(self) -> bytes:
        line, self._line, self._size = b"".join(self._line), [], 0
        return line


async def read_object(data: bytes) -> ResultRow:
    """Read one object, which may be too long to be decoded at once; other tasks run meanwhile."""
    row, at, begun = OpenRow((), len(data)), 0, time.monotonic()
    while at < len(data) and not row.outline.is_done:
        at += row.feed(data[at : at + _STEP_BYTES])
        begun = await turn(begun)
    return row.row() if row.outline.is_done and at == len(data) else row.broken()


def answers_of(
    row: ResultRow, read: Callable[[Mapping[str, Any]], Answer], path: tuple[str, ...]
) -> Iterator[tuple[str, Answer]]:
    """
    Custom id and answer of a row; "" for an unreadable row that names no request of ours.

    `read` reads the object, in which the response's body is at `path`.
    """
    if row.row is not None and "custom_id" not in row.row:
        return
    if row.is_too_large:
        message = f"the provider's result is over {MOST_ROW_BYTES} bytes"
        answer = Answer(kind="response_too_large", message=message)
    elif row.row is None:
        answer = unreadable("the provider's result is not JSON", row.text)
    else:
        answer = read(row.row)
        if isinstance(row.text, LongText) and answer.ok:
            answer = replace(answer, text=row.text, path=path)
        elif answer.kind == MALFORMED and row.text is not None:
            answer = unreadable(answer.message, row.text)
    answer = replace(answer, size=row.size)
    ids = row.ids if row.row is None else (str(row.row.get("custom_id")),)
    yield from ((id_, answer) for id_ in ids or ("",))


def _begins_row(line: bytes) -> bool:
    """Whether a line is a row of its own, and does not continue the one before it."""
    text = line.lstrip(b"\xef\xbb\xbf\x1e\0")
    return text.startswith(b"{") and b'"custom_id"' in text
