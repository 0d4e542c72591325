"""Notes the status of a response as soon as its status line has arrived, whatever follows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

# Limit of 1xx responses before the final one: a 100 and some early hints are usual.
_MOST_INFORMATIONAL = 20
# A content security policy easily has more than aiohttp's 8 KiB.
MAX_HEADER_BYTES = 65_536
# Beyond this many bytes before the final status line, nothing is noted.
_MOST_BYTES = 262_144
_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})(?!\d)")


class StatusLine:
    """Finds the final status in the bytes of one response; 1xx responses are skipped."""

    def __init__(self) -> None:
        self.status: int | None = None
        self._line = bytearray()
        self._left = _MOST_BYTES
        self._in_informational = False

    def feed(self, data: bytes) -> None:
        if self.status is not None or self._left <= 0:
            return
        if not self._line and not self._in_informational and b"\n" in data:
            # Nearly every response: all of its status line is in the first bytes.
            found = _STATUS_LINE.match(data)
            if found is not None and found[1][:1] != b"1":
                self.status = int(found[1])
                return
        self._left -= len(data)
        self._line += data
        *lines, rest = self._line.split(b"\n") if b"\n" in data else [self._line]
        self._line = bytearray(rest)
        for line in lines:
            self._read(bytes(line.rstrip(b"\r")))
            if self.status is not None or self._left <= 0:
                return

    def _read(self, line: bytes) -> None:
        if self._in_informational:
            self._in_informational = bool(line)
        elif line:
            found = _STATUS_LINE.match(line)
            if found is None:
                self._left = 0
            elif 100 <= int(found[1]) < 200 and int(found[1]) != 101:
                self._in_informational = True
            else:
                self.status = int(found[1])


# What notes the status of the current task's request.
noted: ContextVar[StatusLine | None] = ContextVar("noted_status", default=None)


class NotingProtocol(ResponseHandler):
    """Shows the bytes of a response to `status_line` before they are parsed."""

    status_line: StatusLine | None = None

    def data_received(self, data: bytes) -> None:
        if self.status_line is not None:
            self.status_line.feed(data)
        super().data_received(data)


class NotingRequest(aiohttp.ClientRequest):
    """Has its response noted. A request of aiohttp's own, CONNECT to a proxy, has not."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        conn.protocol.status_line = noted.get()
        return await super().send(conn)


class NotingConnector(aiohttp.TCPConnector):
    """Opens connections whose responses are noted."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp has no public way to choose the protocol; tests/http/test_odd_responses.py
        # fails when this one is no longer used.
        protocol: Callable[..., ResponseHandler] = NotingProtocol
        self._factory = partial(protocol, loop=self._loop)


class BoundedResponse(aiohttp.ClientResponse):
    """Limits the 1xx responses before the final one: a flood would keep the event loop busy."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        protocol, responses = connection.protocol, 0
        read = protocol.read

        async def counted() -> Any:
            nonlocal responses
            responses += 1
            if responses > _MOST_INFORMATIONAL:
                raise HttpProcessingError(message="too many informational responses")
            return await read()

        protocol.read = counted
        try:
            return await super().start(connection)
        finally:
            del protocol.read
