"""
Reads the rows of a provider's results: JSON objects, usually one on each line.

Time is linear in the size of the results, and no step holds the event loop for long: a row over
256 KiB is not decoded here but kept in pieces, and only its outline is read. A row that is no
JSON is returned as it came, and affects no other row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from worker.http.scrub import scrub
from worker.llm.answers import Answer, LongText, unreadable
from worker.llm.frames import Pieces
from worker.llm.json_text import Unreadable, decode, objects
from worker.llm.outline import Outline

_SHORT_BYTES = 262_144
_SLICE_BYTES = 65_536
# 64 MiB for an answer, and some for what is around it.
MOST_ROW_BYTES = 65 * 1024 * 1024
_OURS = re.compile(rb"req_[0-9a-f]{32}-[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class ResultRow:
    """
    One row. `row` is the object, or the outline of a long one; None when it is unreadable.

    `ids`: custom ids of ours in the text of an unreadable row. `text`: what came, of an unreadable
    or long row. `is_too_large`: it was over the limit, and its text is not kept.
    """

    row: Mapping[str, Any] | None
    size: int
    ids: tuple[str, ...] = ()
    text: bytes | LongText | None = None
    is_too_large: bool = False


class RowReader:
    """Takes results in pieces; `hidden` are our secrets, which a provider may repeat."""

    def __init__(self, hidden: tuple[bytes, ...], *, most: int = MOST_ROW_BYTES) -> None:
        self._hidden = hidden
        self._most = most
        self._line: list[bytes] = []  # the line so far, unless it belongs to `_open`
        self._size = 0
        self._open: _OpenRow | None = None  # an object that has not ended
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

    @property
    def is_long(self) -> bool:
        """Whether a long row is being read: pause after each piece."""
        return self._open is not None

    def _take(self, part: bytes) -> Iterator[ResultRow]:
        if self._joined and self._open is not None:
            yield from self._extend(self._open, part)
            return
        self._line.append(part)
        self._size += len(part)
        if self._size > _SHORT_BYTES:
            yield from self._begin_long()

    def _begin_long(self) -> Iterator[ResultRow]:
        line = self._taken()
        if self._open is not None and _begins_row(line):
            yield self._given_up(self._open)
        if self._open is None:
            line = line[max(0, line.find(b"{")) :]
            self._open = _OpenRow(self._hidden, self._most)
        self._joined = True
        yield from self._extend(self._open, line)

    def _extend(self, row: _OpenRow, part: bytes) -> Iterator[ResultRow]:
        for at in range(0, len(part), _SLICE_BYTES):
            piece = part[at : at + _SLICE_BYTES]
            used = row.feed(piece)
            if row.outline.is_done:
                yield row.row()
                self._open, self._joined = None, False
                yield from self._take(part[at + used :])
                return

    def _end_line(self) -> Iterator[ResultRow]:
        if self._joined and self._open is not None:
            self._joined = False  # it goes on, unless the next line begins a row
            self._open.feed(b"\n")
            return
        self._joined = False
        line = self._taken()
        if not line.strip():
            return
        if self._open is not None:
            if not _begins_row(line):
                self._joined = True
                yield from self._extend(self._open, line)
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
                if len(named) < len(rows) and (ids := _ids(line) - known):
                    yield ResultRow(None, len(line), tuple(ids), line)
                return
            line = yield from self._unread(line, left.encode("utf-8", "surrogatepass"), known)

    def _unread(
        self, line: bytes, text: bytes, known: set[str]
    ) -> Generator[ResultRow, None, bytes]:
        """Take the end of a line that is no JSON, or not yet; returns what follows its object."""
        begin = max(0, text.find(b"{"))
        row = _OpenRow(self._hidden, self._most)
        used = begin + row.feed(text[begin:])
        if text[begin : begin + 1] == b"{" and not row.outline.is_done:
            row.feed(b"\n")
            self._open = row
            return b""
        rest = text[used:]
        came = line.removesuffix(rest) if line.endswith(text) else text[:used]
        yield ResultRow(None, len(came), tuple(_ids(came) - known), came)
        return rest

    def _given_up(self, row: _OpenRow) -> ResultRow:
        self._open, self._joined = None, False
        return row.broken()

    def _taken(self) -> bytes:
        line, self._line, self._size = b"".join(self._line), [], 0
        return line


class _OpenRow:
    """An object that has not ended: a long row, or one that goes on after its line."""

    def __init__(self, hidden: tuple[bytes, ...], most: int) -> None:
        self.outline = Outline()
        self._hidden = hidden
        self._most = most
        self._size = 0
        self._pieces = Pieces(hidden)

    def feed(self, part: bytes) -> int:
        used = self.outline.feed(part)
        self._size += used
        if self._size <= self._most:
            self._pieces.feed(part[:used])
        else:
            self._pieces.drop()
        return used

    def row(self) -> ResultRow:
        text = self._pieces.whole()
        if isinstance(text, bytes) and not self._is_too_large:
            rows, left = objects(text)
            is_row = rows and not left and ("custom_id" in rows[0] or not _ids(text))
            return ResultRow(rows[0], self._size) if is_row else self.broken()
        try:
            found = decode(scrub(bytes(self.outline.text), self._hidden))
        except Unreadable:
            return self.broken()
        return ResultRow(found, self._size, text=text, is_too_large=self._is_too_large)

    def broken(self) -> ResultRow:
        text = self._pieces.whole()
        where = text if isinstance(text, bytes) and text else bytes(self.outline.text)
        ids = _ids(where)
        return ResultRow(None, self._size, tuple(ids), text, self._is_too_large)

    @property
    def _is_too_large(self) -> bool:
        return self._size > self._most


def answers_of(
    row: ResultRow, read: Callable[[Mapping[str, Any]], Answer], path: tuple[str, ...]
) -> Iterator[tuple[str, Answer]]:
    """
    Custom id and answer of a row; "" for an unreadable row that names no request of ours.

    `read` reads the object, in which the response's body is at `path`.
    """
    if row.is_too_large:
        message = f"the provider's result is over {MOST_ROW_BYTES} bytes"
        answer = Answer(kind="response_too_large", message=message)
    elif row.row is None:
        answer = unreadable("the provider's result is not JSON", row.text)
    else:
        answer = read(row.row)
        if isinstance(row.text, LongText) and answer.ok:
            answer = replace(answer, text=row.text, path=path)
    answer = replace(answer, size=row.size)
    ids = row.ids if row.row is None else (str(row.row.get("custom_id")),)
    yield from ((id_, answer) for id_ in ids or ("",))


def _ids(text: bytes) -> set[str]:
    return {id_.decode() for id_ in _OURS.findall(text)}


def _begins_row(line: bytes) -> bool:
    """Whether a line is a row of its own, and does not continue the one before it."""
    text = line.lstrip(b"\xef\xbb\xbf\x1e\0")
    return text.startswith(b"{") and b'"custom_id"' in text
