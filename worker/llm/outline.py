"""
Reads the outline of a JSON object that is too long to be decoded at once. Pure.

It takes the object in pieces, each in time linear to its size, and keeps the members of objects
but not the contents of arrays and long texts. So the outline of a result line shows whose it is
and how it ended.
"""

from __future__ import annotations

import re
from itertools import accumulate

# Whatever this many bytes hold is decoded within 2 ms.
SHORT_BYTES = 16_384
# An answer that lists twenty alternatives for each token has about 4,000 of them in 256 KiB.
_MOST_CONTAINERS = 8192
_TEXT_BYTES = 256
# Beyond this nothing more is kept, and the outline is not JSON.
_MOST_BYTES = 65_536
# An array up to this long is searched for its end byte by byte.
_SHORT_ARRAY = 4096
_TOKEN = re.compile(rb'["\[\]{}]')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {bracket: 1 if bracket in b"[{" else -1 for bracket in b"[]{}"}


def is_dense(data: bytes) -> bool:
    """Whether it has so many arrays and objects that decoding takes long for its size."""
    return len(data) > SHORT_BYTES and data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS


class Outline:
    """`text` is the outline so far; `is_done` when the object has ended."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.is_done = False
        self.in_string = False
        self._depth = 0
        self._escaped = False  # the last piece ended within an escape
        self._begin = 0  # where the current string begins in the outline
        self._array = 0  # depth within what is left out: an array, or the rest of the object
        self._is_full = False

    def feed(self, piece: bytes) -> int:
        """Take a piece; returns how many bytes of it belong to the object."""
        masked, self._escaped = _masked(piece, self._escaped)
        at = 0
        while at < len(piece) and not self.is_done:
            at = self._skip(masked, at) if self._array else self._keep(piece, masked, at)
        return at

    def _keep(self, piece: bytes, masked: bytes, at: int) -> int:
        """Copy up to the next quote or bracket, or to the end."""
        if self.in_string:
            end = masked.find(b'"', at)
            stop = len(masked) if end < 0 else end
            self.text += piece[at : min(stop, at + _TEXT_BYTES + 1)]
            if len(self.text) - self._begin > _TEXT_BYTES:
                self.text[self._begin :] = b"..."
            self.in_string = end < 0
            if end >= 0:
                self.text += b'"'
            return stop if end < 0 else end + 1
        found = _TOKEN.search(masked, at)
        end = len(masked) if found is None else found.end()
        self.text += piece[at:end]
        if found is not None:
            self._token(found[0])
        if len(self.text) > _MOST_BYTES and not self.is_done:
            self._is_full, self._array = True, self._depth + bool(self._array)
        return end

    def _token(self, token: bytes) -> None:
        if token == b'"':
            self.in_string, self._begin = True, len(self.text)
        elif token == b"[":
            self._array = 1
        elif token == b"{":
            self._depth += 1
        else:
            self._depth -= 1
            self.is_done = self._depth <= 0

    def _skip(self, masked: bytes, at: int) -> int:
        """Pass over an array's contents."""
        end = at
        if at:  # it begins in this piece, and may end soon
            end = self._search(masked, at, min(len(masked), at + _SHORT_ARRAY))
            if not self._array or end == len(masked):
                return end
        parts = masked[end:].split(b'"')
        brackets = b"".join(parts[1 if self.in_string else 0 :: 2]).translate(None, _NOT_BRACKETS)
        closing, opening = _unmatched(brackets)
        if closing >= self._array:
            return self._search(masked, end, len(masked))
        self._array += opening - closing
        self.in_string ^= not len(parts) % 2
        return len(masked)

    def _search(self, masked: bytes, at: int, stop: int) -> int:
        """Look for the array's end one bracket at a time, up to `stop`."""
        for found in _TOKEN.finditer(masked, at, stop):
            token = found[0]
            if token == b'"':
                self.in_string = not self.in_string
            elif not self.in_string:
                self._array += 1 if token in b"[{" else -1
                if not self._array:
                    self.text += b"0]"
                    self.is_done = self._is_full
                    return found.end()
        return stop


def _masked(piece: bytes, escaped: bool) -> tuple[bytes, bool]:
    """The piece with its escaped characters blanked, so that each quote begins or ends a string."""
    if escaped:
        piece = b"." + piece[1:]
    masked = piece.replace(b"\\\\", b"..").replace(b'\\"', b"..")
    return masked, masked.endswith(b"\\")


def _unmatched(brackets: bytes) -> tuple[int, int]:
    """How many brackets are closed that were opened before, and how many stay open."""
    depths = (0, *accumulate(map(_STEPS.__getitem__, brackets)))
    closing = -min(depths)
    return closing, depths[-1] + closing
