"""
Reads the replies of one connection and hands each to its call, in order.

hiredis parses most replies, and copies a large value three times on the way:
into its buffer, within it, and out of it. Most bytes that a cache receives are
values of hits. So the reply to a call with a `Decode` (`MGET` of a short string and
a value) is parsed in the receive buffer, and its value is copied once.

hiredis keeps what it is fed, and does not tell where a reply ends. Hits that it is fed
behind another reply leave it only when a reply ends where the received bytes end, which
takes seconds under load. So it is fed one reply at a time where hits may follow.
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
# Finding the end of a reply with more parts would take longer than hiredis takes to copy hits.
_MOST_PARTS = 16

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
        self._has_decoded = False  # whether there were calls with a `Decode`
        self.calls: deque[tuple[asyncio.Future[Any], Decode | None]] = deque()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._view[self._kept :]

    def buffer_updated(self, nbytes: int) -> None:
        at, end = 0, self._kept + nbytes
        self._kept = 0
        try:
            while at < end:
                stop = end
                if not self._is_reading:
                    at, stop = self._read_in_place(at, end)
                    if at == end or (stop > end and self._keep(at, end)):
                        break
                stop = min(stop, end)
                self._reader.feed(self._buffer, at, stop - at)  # type: ignore[arg-type]
                self._read_others()
                at = stop
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

    def _read_in_place(self, at: int, end: int) -> tuple[int, int]:
        """
        Parse the replies of calls with a `Decode` in the buffer.

        Returns where it stopped, and where the reply there ends: past `end` if it is cut off.
        """
        calls, buffer, view = self.calls, self._buffer, self._view
        while at < end and calls:
            decode = calls[0][1]
            if decode is None:
                return at, self._end_of_other(at, end)
            self._has_decoded = True
            found = _HIT.match(buffer, at, end)
            if found is None:
                reply, stop = _read_rare(buffer, at, end, decode)
            else:
                start = found.end()
                stop = start + int(found[2]) + 2
                if stop <= end:
                    reply = (found[1], decode(view, start, stop - 2))
            if stop > end:
                return at, stop
            at = stop
            self._answer(reply)
        return at, end

    def _end_of_other(self, at: int, end: int) -> int:
        """Up to where to feed hiredis: to the end of the reply at `at` if hits may follow."""
        if not self._has_decoded or len(self.calls) == 1:
            return end
        return _end_of_reply(self._buffer, at, end) or end

    def _keep(self, at: int, end: int) -> bool:
        """Keep the start of a reply in the buffer until its rest arrives, if it can fit."""
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


def _end_of_reply(data: bytearray, at: int, end: int) -> int:
    """Where a reply ends: past `end` if it is cut off. 0 if it has many parts."""
    parts = 1
    while parts and at <= end:
        kind, line, at = _read_line(data, at, end)
        parts -= 1
        if kind == b"$" and not line.startswith(b"-"):
            at += int(line) + 2
        elif kind == b"*":
            parts += max(0, int(line))
            if parts > _MOST_PARTS:
                return 0
    return at


def _read_line(data: bytearray, at: int, end: int) -> tuple[bytes, bytes, int]:
    """A line's first byte, its rest, and where the next line begins: past `end` if cut off."""
    stop = data.find(b"\r\n", at, end)
    if stop < 0:
        return b"", b"", end + 1
    return bytes(data[at : at + 1]), bytes(data[at + 1 : stop]), stop + 2
