"""
Collects a row of a provider's results that is long, or goes on after its line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.http.scrub import scrub
from worker.llm.answers import LongText
from worker.llm.frames import Pieces
from worker.llm.json_text import Slow, UnreadableJSON, decode, decode_at_once
from worker.llm.outline import Outline

_OURS = re.compile(rb"req_[0-9a-f]{32}-[0-9a-f]{24}")
ID_BYTES = 61


@dataclass(frozen=True, slots=True)
class ResultRow:
    """
    One row. `row` is the object; None when it is unreadable.

    Of an object that is long or slow to decode, `row` is the outline, and `text` what came as
    LongText. `ids`: custom ids of ours in the text of an unreadable row, whose `text` is what came.
    `is_too_large`: it was over the limit, and its text is not kept.
    """

    row: Mapping[str, Any] | None
    size: int
    ids: tuple[str, ...] = ()
    text: bytes | LongText | None = None
    is_too_large: bool = False


class OpenRow:
    """
    An object that has not ended: a long row, or one that goes on after its line.

    `before` stood before it on its line. If that names a request, the beginning of its row is lost
    and the object is the rest of it: the row is headless.
    """

    def __init__(self, hidden: tuple[bytes, ...], most: int, *, before: bytes = b"") -> None:
        self.outline = Outline()
        self._hidden = hidden
        self._most = most
        self._pieces = Pieces(hidden)
        self.before = before
        self._before = ids_in(before)
        self._size = len(before) if self._before else 0
        if self._before:
            self._pieces.feed(before)

    @property
    def is_headless(self) -> bool:
        return bool(self._before)

    def feed(self, part: bytes) -> int:
        used = self.outline.feed(part)
        self._size += used
        if self._size <= self._most:
            self._pieces.feed(part[:used])
        else:
            self._pieces.drop()
        return used

    def row(self) -> ResultRow:
        if self._before:
            return self.broken()
        text = self._pieces.whole()
        if isinstance(text, bytes) and not self._is_too_large:
            try:
                return self._checked(ResultRow(decode_at_once(text), self._size), text)
            except Slow:
                text = LongText((text,))
            except UnreadableJSON:
                return self.broken()
        outline = scrub(bytes(self.outline.text), self._hidden)
        try:
            row = ResultRow(decode(outline), self._size, (), text, self._is_too_large)
        except UnreadableJSON:
            return self.broken()
        return self._checked(row, outline)

    def _checked(self, row: ResultRow, text: bytes) -> ResultRow:
        """The row, unless it names a request of ours where no custom id is."""
        is_row = row.row is not None and "custom_id" in row.row
        return row if is_row or not ids_in(text) else self.broken()

    def broken(self) -> ResultRow:
        text = self._pieces.whole()
        where = text if isinstance(text, bytes) and text else bytes(self.outline.text)
        ids = self._before | ids_in(where)
        if not ids and isinstance(text, LongText):
            ids = set().union(*map(ids_in, text.pieces))
        return ResultRow(None, self._size, tuple(ids), text, self._is_too_large)

    @property
    def _is_too_large(self) -> bool:
        return self._size > self._most


def ids_in(text: bytes) -> set[str]:
    """The custom ids of ours in a text."""
    return {id_.decode() for id_ in _OURS.findall(text)}
