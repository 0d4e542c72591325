"""
Keeps a long text in pieces while it arrives, and stores it in frames. Pure.

A frame is one byte (1: compressed), four bytes of length, and at most 256 KiB of text. It
decompresses to at most 32 times its size, so the stored size bounds the reader's memory.
"""

from __future__ import annotations

import zlib

from worker.http.scrub import scrub
from worker.llm.answers import LongText

_FRAME_BYTES = 262_144
_MOST_RATIO = 32


class Pieces:
    """Collects a text and removes the `hidden` secrets from it."""

    def __init__(self, hidden: tuple[bytes, ...]) -> None:
        self._hidden = hidden
        # A secret may lie across two pieces, so its length is kept back.
        self._back = max(map(len, hidden), default=1) - 1
        self._rest = bytearray()
        self._done: list[bytes] = []

    def feed(self, data: bytes) -> None:
        self._rest += data
        if len(self._rest) < _FRAME_BYTES:
            return
        text = scrub(bytes(self._rest), self._hidden)
        end = len(text) - self._back
        self._rest = bytearray(text[end:])
        self._done += (text[at : min(end, at + _FRAME_BYTES)] for at in range(0, end, _FRAME_BYTES))

    def drop(self) -> None:
        """Keep nothing of the text."""
        self._rest.clear()
        self._done.clear()

    def whole(self) -> bytes | LongText:
        """The whole text: as bytes when it is short."""
        rest = scrub(bytes(self._rest), self._hidden)
        return LongText((*self._done, rest)) if self._done else rest


def frame(text: bytes) -> bytes:
    """A piece as it is stored."""
    packed = zlib.compress(text, 1)
    is_packed = len(packed) < len(text) <= _MOST_RATIO * len(packed)
    data = packed if is_packed else text
    return bytes([is_packed]) + len(data).to_bytes(4, "big") + data


def unpack(data: memoryview, *, most: int) -> bytes:
    """
    The text of frames.

    Raises:
        ValueError, zlib.error: they are no frames, or hold more than `most` bytes.
    """
    text = bytearray()
    while data:
        size = int.from_bytes(data[1:5], "big")
        frame, is_packed = data[5 : 5 + size], data[0]
        if len(frame) != size or len(text) > most:
            raise ValueError("not the frames of a text")
        if is_packed:
            inflater = zlib.decompressobj()
            text += inflater.decompress(frame, min(_FRAME_BYTES, _MOST_RATIO * size) + 1)
            if not inflater.eof:
                raise ValueError("a frame holds too much")
        else:
            text += frame
        data = data[5 + size :]
    return bytes(text)
