"""
The replies of one connection, handed in their order to the calls that wait.

hiredis reads them. On the way it copies a large value three times: into its
buffer, within it, and out of it. Most of what a cache receives are the large
values of hits, so the reply to a call that comes with a `Take` (`MGET` of two
short strings and a value) is read where it was received, and copied once.
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

from cache.connection.pool import explain
from cache.connection.protocol import Take

_BUFFER_BYTES = 512 * 1024
# A hit as it nearly always is: two strings of 16 bytes, and the length of the value.
_HIT = re.compile(rb"\*3\r\n\$16\r\n(.{16})\r\n\$16\r\n(.{16})\r\n\$(\d{1,9})\r\n", re.DOTALL)

# Refusals that callers tell apart, by the first word of the reply.
_ERRORS = {"NOSCRIPT": NoScriptError, "OOM": OutOfMemoryError, "READONLY": ReadOnlyError}


def as_error(text: str) -> ResponseError:
    return _ERRORS.get(text.partition(" ")[0], ResponseError)(text)


class Receiver(Protocol):
    """Whose replies are read: told of what happens to its connection."""

    def progress(self) -> None:
        """Bytes have arrived."""

    def lose(self, reason: str, replies: Replies) -> None:
        """The connection has ended, or is of no use any more."""

    def desynchronize(self, reason: str, replies: Replies) -> None:
        """Replies may not be those of the calls that wait."""


class Replies(asyncio.BufferedProtocol):
    """
    Hands each reply to the call that waits longest.

    `calls` are their futures, each with what it makes of the value in its reply.
    """

    def __init__(self, connection: Receiver, before: asyncio.BaseProtocol) -> None:
        self._connection = connection
        self._before = before  # redis-py's own, told when the connection ends
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)  # TLS fills slices of it, which must not be copies
        self._kept = 0  # bytes at its beginning: of a reply that is not whole yet
        self._reader = hiredis.Reader(replyError=as_error)
        self._is_reading = False  # hiredis has a part of a reply, or more of them
        self.calls: deque[tuple[asyncio.Future[Any], Take | None]] = deque()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._view[self._kept :]

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.progress()
        end = self._kept + nbytes
        self._kept = 0
        try:
            at = 0 if self._is_reading else self._read_in_place(end)
            if at < end and not self._keep(at, end):
                self._reader.feed(self._buffer, at, end - at)  # type: ignore[arg-type]
                self._read_others()
            if not self.calls and (self._is_reading or self._kept):
                # The rest of them would be taken for the reply to the next call.
                raise ValueError("bytes that no call waits for")
        except ReadOnlyError:
            # A Sentinel names another master by now: the next call dials that one.
            self._connection.lose("the server became a replica", self)
        except Exception as exc:  # noqa: BLE001  (whose reply the next bytes are is not known)
            self._connection.desynchronize(f"replies out of step: {type(exc).__name__}", self)

    def _read_in_place(self, end: int) -> int:
        """Read the replies in the buffer that calls have a `Take` for; where that stops."""
        calls, buffer, view, at = self.calls, self._buffer, self._view, 0
        while at < end and calls:
            take = calls[0][1]
            if take is None:
                break
            found = _HIT.match(buffer, at, end)
            if found is None:
                reply, stop = _read_rare(buffer, at, end, take)
            else:
                start = found.end()
                stop = start + int(found[3]) + 2
                if stop <= end:
                    reply = (found[1], found[2], take(view, start, stop - 2))
            if stop > end:
                break
            at = stop
            self._answer(reply)
        return at

    def _keep(self, at: int, end: int) -> bool:
        """Leave the beginning of a reply in the buffer until the rest is there, if it fits."""
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
        """Hand out what hiredis has read. The next bytes are its own unless a reply ended here."""
        self._is_reading = True
        while self._is_reading and (reply := self._reader.gets()) is not False:
            take = self.calls[0][1]
            if take is not None and not isinstance(reply, ResponseError):
                reply = _taken(reply, take)
            self._is_reading = self._reader.has_data()
            self._answer(reply)

    def _answer(self, reply: Any) -> None:
        """Raises ReadOnlyError when that is the reply: the call has it, the connection is of no use."""
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
        """Calls are bounded by those who wait for them."""

    def resume_writing(self) -> None: ...


def _taken(reply: Any, take: Take) -> list[Any]:
    """
    Three strings, the last as `take` makes it; any may be absent.

    Raises:
        ValueError: it is something else.
    """
    if type(reply) is not list or len(reply) != 3 or {*map(type, reply)} - {bytes, type(None)}:
        raise ValueError("not the reply to what was asked")
    if reply[2] is not None:
        reply[2] = take(reply[2], 0, len(reply[2]))
    return reply


def _read_rare(data: bytearray, at: int, end: int, take: Take) -> tuple[Any, int]:
    """
    A refusal, or strings of which any may be absent, and where it ends: past `end` if it is cut off.

    Raises:
        ValueError: it is something else.
    """
    kind, line, at = _read_line(data, at, end)
    if kind == b"-":
        return as_error(line.decode(errors="replace")), at
    if at <= end and (kind, line) != (b"*", b"3"):
        raise ValueError("not the reply to what was asked")
    found: list[Any] = []
    while len(found) < 3 and at <= end:
        kind, line, start = _read_line(data, at, end)
        size = int(line or b"0")
        if start > end:
            return None, start
        if kind != b"$":
            raise ValueError("not the reply to what was asked")
        at = start if size < 0 else start + size + 2
        if at <= end:
            found.append(None if size < 0 else bytes(data[start : at - 2]))
    return (_taken(found, take) if at <= end else None), at


def _read_line(data: bytearray, at: int, end: int) -> tuple[bytes, bytes, int]:
    """Its first byte, the rest, and where the next one begins: past `end` if it is cut off."""
    stop = data.find(b"\r\n", at, end)
    if stop < 0:
        return b"", b"", end + 1
    return bytes(data[at : at + 1]), bytes(data[at + 1 : stop]), stop + 2
