"""
Reads the replies of one connection and hands each to its call, in order.

hiredis parses most replies, and copies a large value three times on the way:
into its buffer, within it, and out of it. Most bytes that a cache receives are
values of hits. So the reply to a call with a `Decode` (`MGET` of a short string and
a value) is parsed in the receive buffer, and its value is copied once.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any, Protocol

import hiredis
from redis.exceptions import (
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from cache.connection.protocol import Decode, Elsewhere
from cache.connection.refusals import explain

_BUFFER_BYTES = 512 * 1024
# Nearly every hit: a version of 16 bytes, then the length of the value.
_HIT = re.compile(rb"\*2\r\n\$16\r\n(.{16})\r\n\$(\d{1,9})\r\n", re.DOTALL)

# Errors that callers distinguish, by the first word of the reply.
_ERRORS = {"NOSCRIPT": NoScriptError, "OOM": OutOfMemoryError, "READONLY": ReadOnlyError}


def as_error(text: str) -> ResponseError:
    return _ERRORS.get(text.partition(" ")[0], ResponseError)(text)


class Receiver(Protocol):
    """Owns the connection whose replies are read, and hears what happens to it."""

    def progress(self) -> None:
        """Bytes have arrived, and the replies among them are handed out."""

    def lose(self, reason: str, replies: Replies) -> None:
        """The connection has ended, or is of no use any more."""

    def desynchronize(self, reason: str, replies: Replies) -> None:
        """Replies may not be those of the calls that wait."""


class Replies(asyncio.BufferedProtocol):
    """
    Hands each reply to the call that has waited longest.

    `calls` holds each call's future, with its `Decode` or None.
    """

    def __init__(self, connection: Receiver, before: asyncio.BaseProtocol) -> None:
        self._connection = connection
        self._before = before  # redis-py's protocol, which must learn of the connection's end
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)  # slices of a bytearray would be copies
        self._kept = 0  # bytes at the buffer's start that belong to an incomplete reply
        self._reader = hiredis.Reader(replyError=as_error)
        self._is_reading = False  # whether hiredis holds unread bytes
        self.calls: deque[tuple[asyncio.Future[Any], Decode | None]] = deque()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._view[self._kept :]

    def buffer_updated(self, nbytes: int) -> None:
        end = self._kept + nbytes
        self._kept = 0
        try:
            at = 0 if self._is_reading else self._read_in_place(end)
            if at < end and not self._keep(at, end):
                self._reader.feed(self._buffer, at, end - at)  # type: ignore[arg-type]
                self._read_others()
            if not self.calls and (self._is_reading or self._kept):
                # Their rest would be read as the reply to the next call.
                raise ValueError("received bytes that no call waits for")
            self._connection.progress()
        except ReadOnlyError:
            # Sentinel names the new master by now, so the next call must dial again.
            self._connection.lose("the server became a replica", self)
        except Elsewhere as exc:
            self._connection.lose(str(exc), self)
        except Exception as exc:  # noqa: BLE001  (the owner of the next bytes is unknown)
            self._connection.desynchronize(f"replies out of step: {type(exc).__name__}", self)

    def _read_in_place(self, end: int) -> int:
        """Parse the replies of calls with a `Decode` in the buffer. Returns where it stopped."""
        calls, buffer, view, at = self.calls, self._buffer, self._view, 0
        while at < end and calls:
            decode = calls[0][1]
            if decode is None:
                break
            found = _HIT.match(buffer, at, end)
            if found is None:
                reply, stop = _read_rare(buffer, at, end, decode)
            else:
                start = found.end()
                stop = start + int(found[2]) + 2
                if stop <= end:
                    reply = (found[1], decode(view, start, stop - 2))
            if stop > end:
                break
            at = stop
            self._answer(reply)
        return at

    def _keep(self, at: int, end: int) -> bool:
        """Keep the start of a reply in the buffer until its rest arrives, if it can fit."""
        if self._is_reading or not self.calls or self.calls[0][1] is None:
            return False
        size = end - at
        if size == _BUFFER_BYTES:
            return False
        if at:
            self._view[:size] = self._view[at:end]
        self._kept = size
        return True

    def _read_others(self) -> None:
        """Hand out what hiredis has parsed. It gets the next bytes too, unless a reply ended here."""
        self._is_reading = True
        while self._is_reading and (reply := self._reader.gets()) is not False:
            decode = self.calls[0][1]
            if decode is not None and not isinstance(reply, ResponseError):
                reply = _decoded(reply, decode)
            self._is_reading = self._reader.has_data()
            self._answer(reply)

    def _answer(self, reply: Any) -> None:
        """Hand out one reply. Raises ReadOnlyError after handing it out: the connection must end."""
        call, _ = self.calls.popleft()
        if not call.done():
            call.set_result(reply)
        if type(reply) is ReadOnlyError:
            raise reply

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lose(explain(exc) if exc else "closed by the server", self)
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        """Nothing: the number of waiting callers bounds the bytes."""

    def resume_writing(self) -> None: ...


def _decoded(reply: Any, decode: Decode) -> list[Any]:
    """
    A reply of two strings or Nones, with the last one decoded.

    Raises:
        ValueError: the reply has another form.
    """
    if type(reply) is not list or len(reply) != 2 or {*map(type, reply)} - {bytes, type(None)}:
        raise ValueError("the reply has another form than the command's")
    if reply[1] is not None:
        reply[1] = decode(reply[1], 0, len(reply[1]))
    return reply


def _read_rare(data: bytearray, at: int, end: int, decode: Decode) -> tuple[Any, int]:
    """
    An error, or two strings or Nones, and where the reply ends: past `end` if it is cut off.

    Raises:
        ValueError: the reply has another form.
    """
    kind, line, at = _read_line(data, at, end)
    if kind == b"-":
        return as_error(line.decode(errors="replace")), at
    if at <= end and (kind, line) != (b"*", b"2"):
        raise ValueError("the reply has another form than the command's")
    found: list[Any] = []
    while len(found) < 2 and at <= end:
        kind, line, start = _read_line(data, at, end)
        size = int(line or b"0")
        if start > end:
            return None, start
        if kind != b"$":
            raise ValueError("the reply has another form than the command's")
        at = start if size < 0 else start + size + 2
        if at <= end:
            found.append(None if size < 0 else bytes(data[start : at - 2]))
    return (_decoded(found, decode) if at <= end else None), at


def _read_line(data: bytearray, at: int, end: int) -> tuple[bytes, bytes, int]:
    """A line's first byte, its rest, and where the next line begins: past `end` if cut off."""
    stop = data.find(b"\r\n", at, end)
    if stop < 0:
        return b"", b"", end + 1
    return bytes(data[at : at + 1]), bytes(data[at + 1 : stop]), stop + 2
