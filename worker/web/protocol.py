"""
Limits HTTP connections: their number, and how long a client may be slow or silent.

uvicorn closes only a connection that is idle after a reply. One whose client never sends its
request, sends it a byte at a time, or never reads the reply would stay open forever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# A request's head has to arrive within this time, and the reply to be read within the other.
HEAD_S, REPLY_S = 10.0, 60.0
# Connections. One more takes the place of the one that has been silent for longest.
MOST = 256
# Request line and headers, bytes.
MOST_HEAD = 32_768


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline for each part of a request."""

    _timer: asyncio.TimerHandle | None = None
    _since = 0.0

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > MOST:
            others = [each for each in self.connections if isinstance(each, BoundedProtocol)]
            silent = [each for each in others if not each._is_busy and each is not self]
            min(silent, key=lambda each: each._since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before: Any = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._since = self.loop.time()
        limit = REPLY_S if self._is_busy else HEAD_S
        self._timer = self.loop.call_later(limit, self.transport.abort)
