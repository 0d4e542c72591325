"""
Reads the rows of a provider's results: JSON objects, usually one on each line.

Time is linear in the size of the results, and no step holds the event loop for long: a row over
256 KiB is not decoded here but kept in pieces, and only its outline is read. A row that is no
JSON is returned as it came, and affects no other row.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from worker.http.scrub import scrub
from worker.llm.answers import MALFORMED, Answer, LongText, unreadable
from worker.llm.json_text import objects
from worker.llm.providers.open_row import ID_BYTES, OpenRow, ResultRow, ids_in

_SHORT_BYTES = 262_144
_FIRST_BYTES, _SLICE_BYTES = 1024, 65_536
# What is read between two looks at the clock, and the time after which other tasks may run.
_STEP_BYTES, _TURN_S = 16_384, 0.005
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
                yield row
                begun = await _turn(begun)
            begun = await _turn(begun)
    for row in reader.end():
        yield row


async def _turn(begun: float) -> float:
    if time.monotonic() - begun < _TURN_S:
        return begun
    await asyncio.sleep(0)
    return time.monotonic()


class RowReader:
    """Takes results in pieces; `hidden` are our secrets, which a provider may repeat."""

    def __init__(self, hidden: tuple[bytes, ...], *, most: int = MOST_ROW_BYTES) -> None:
        self._hidden = hidden
        self._most = most
        self._line: list[bytes] = []  # the line so far, unless it belongs to `_open`
        self._size = 0
        self._open: OpenRow | None = None  # an object that has not ended
        self._joined = False  # whether the line belongs to it

    def feed(self, piece: bytes) -> Iterator[ResultRow]:
        """Take a piece; yields the rows that it ends."""
        for at in range(0, len(piece), _SLICE_BYTES):
            *ended, rest = piece[at : at + _SLICE_BYTES].split(b"\n")
            for part in ended:
                yield from self._take(part)
                yield from self._end_line()
            if rest:
                yield from self._take(rest)

    def end(self) -> Iterator[ResultRow]:
        """The results have ended."""
        yield from self._end_line()
        if self._open is not None:
            yield self._given_up(self._open)

    def _take(self, part: bytes) -> Iterator[ResultRow]:
        if self._joined:
            yield from self._extend(part)
            return
        self._line.append(part)
        self._size += len(part)
        if self._size > _SHORT_BYTES:
            yield from self._begin_long()

    def _begin_long(self) -> Iterator[ResultRow]:
        line = self._taken()
        if self._open is not None and _begins_row(line):
            yield self._given_up(self._open)
        self._joined = True
        yield from self._extend(line)

    def _extend(self, part: bytes) -> Iterator[ResultRow]:
        """Take more of a line that is read object by object."""
        at, step = 0, _FIRST_BYTES
        while at < len(part):
            if self._open is None:
                begin = part.find(b"{", at)
                if begin < 0:
                    self._joined = False
                    yield from self._between(part[at:])
                    return
                self._open = OpenRow(self._hidden, self._most, before=part[at:begin])
                at, step = begin, _FIRST_BYTES
            at += self._open.feed(part[at : at + step])
            # What follows a short object must not be looked at again for each of them.
            step = min(_SLICE_BYTES, 2 * step)
            if self._open.outline.is_done:
                yield self._open.row()
                self._open = None
        self._joined = self._open is not None

    def _between(self, text: bytes) -> Iterator[ResultRow]:
        """Take what follows the last object, or a part of a line that has none."""
        if len(text) > _SHORT_BYTES:
            came, text = text[:-ID_BYTES], text[-ID_BYTES:]  # an id may go on in the next part
            if objects(came)[1]:
                yield ResultRow(None, len(came), tuple(ids_in(came)), came)
        self._line, self._size = [text], len(text)

    def _end_line(self) -> Iterator[ResultRow]:
        if self._joined and self._open is not None:
            self._joined = False  # it goes on, unless the next line begins a row
            self._open.feed(b"\n")
            return
        line = self._taken()
        if not line.strip():
            return
        if self._open is not None:
            if not _begins_row(line):
                self._joined = True
                yield from self._extend(line)
                yield from self._end_line()
                return
            yield self._given_up(self._open)
        yield from self._short(line)

    def _short(self, line: bytes) -> Iterator[ResultRow]:
        line = scrub(line, self._hidden)
        while line:
            rows, left = objects(line)
            named = [row for row in rows if "custom_id" in row]
            yield from (ResultRow(row, len(line)) for row in named)
            known = {str(row["custom_id"]) for row in named}
            if not left:
                if len(named) < len(rows) and (ids := ids_in(line) - known):
                    yield ResultRow(None, len(line), tuple(ids), line)
                return
            line = yield from self._unread(line, left.encode("utf-8", "surrogatepass"), known)

    def _unread(
        self, line: bytes, text: bytes, known: set[str]
    ) -> Generator[ResultRow, None, bytes]:
        """Take the end of a line that is no JSON, or not yet; returns what follows its object."""
        begin = max(0, text.find(b"{"))
        row = OpenRow(self._hidden, self._most)
        used = begin + row.feed(text[begin:])
        if text[begin : begin + 1] == b"{" and not row.outline.is_done:
            row.feed(b"\n")
            self._open = row
            return b""
        rest = text[used:]
        came = line.removesuffix(rest) if line.endswith(text) else text[:used]
        yield ResultRow(None, len(came), tuple(ids_in(came) - known), came)
        return rest

    def _given_up(self, row: OpenRow) -> ResultRow:
        self._open, self._joined = None, False
        return row.broken()

    def _taken(self) -> bytes:
        line, self._line, self._size = b"".join(self._line), [], 0
        return line


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
