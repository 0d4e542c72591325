"""
Connection classes of redis-py on which a cancellation is never lost.

redis-py bounds a send by `asyncio.wait_for`. On Python 3.11 that returns the result, and drops a
cancellation, when both come in the same step of the loop (https://github.com/python/cpython/issues/86296).
Whoever canceled then waits for a task that goes on: a timeout that never ends, a worker that does
not stop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError


class KeepsCancellation:
    """Comes before a class of redis-py, and wraps its method."""

    disconnect: Any

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send, then raise the cancellation that came meanwhile and was dropped."""
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except AttributeError:
            # Another task ended the connection between two steps of this one: as redis-py does with
            # idle ones when Sentinels name another master, and with all when a client is closed.
            raise RedisConnectionError("the connection was ended meanwhile") from None
        finally:
            if task and task.cancelling() > before:
                await self.disconnect(nowait=True)
                raise asyncio.CancelledError


class TCPConnection(KeepsCancellation, Connection):  # type: ignore[misc]
    """A connection by TCP."""


class TLSConnection(KeepsCancellation, SSLConnection):  # type: ignore[misc]
    """A connection by TLS."""


class UnixConnection(KeepsCancellation, UnixDomainSocketConnection):  # type: ignore[misc]
    """A connection by a Unix socket."""
