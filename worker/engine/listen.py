"""
Detects jobs that arrive without a wake token: stock arq clients push none.

One worker of each queue subscribes to changes of its keys (`CLIENT TRACKING`).
Jobs of our own clients cause such messages too, while their token wakes a worker. So a
message is read a millisecond late: a worker that has work by then ignores it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError

from cache.connection.pool import OUTAGE
from worker.keys import EngineKeys

_RETRY_S = 0.5
# Changes within this time cause one poll, and a token arrives before them.
_SETTLE_S = 0.001


class Listener:
    """
    Wakes this worker on changes that came without a token. One worker per queue runs it.

    It probes both of its connections every `probe_s` seconds.
    """

    def __init__(
        self, client: Any, keys: EngineKeys, hint: Callable[[], None], *, probe_s: float = 30.0
    ) -> None:
        self._client = client
        self._probe_s = probe_s
        self._prefix = keys.default_queue
        # The tracked prefix also matches other keys, such as running jobs and health.
        self._keys = {key.encode() for key in (*keys.queues, keys.schedules)}
        self._hint = hint

    async def run(self) -> None:
        """Listen until canceled; reconnect after an outage."""
        while True:
            try:
                await self._listen()
            except OUTAGE:
                await asyncio.sleep(_RETRY_S)

    async def _listen(self) -> None:
        # A subscribed connection cannot go back to the pool.
        connection = self._client.connection_pool.make_connection()
        try:
            await connection.connect()
            await connection.send_command("CLIENT", "ID")
            own = await connection.read_response()
            await connection.send_command("SUBSCRIBE", "__redis__:invalidate")
            await connection.read_response()
            # RESP2: a second connection does the tracking and redirects messages here.
            tracking = self._client.connection_pool.make_connection()
            try:
                await tracking.connect()
                await tracking.send_command(
                    *("CLIENT", "TRACKING", "ON", "REDIRECT", own, "BCAST"),
                    *("PREFIX", self._prefix),
                )
                await tracking.read_response()
                await self._receive(connection, tracking)
            finally:
                await tracking.disconnect()
        finally:
            await connection.disconnect()

    async def _receive(self, connection: Any, tracking: Any) -> None:
        transport = connection._writer.transport
        changes = ChangeListener(transport, self._changed)
        # redis-py's reader may have consumed a change that came before this line.
        self._hint()
        try:
            while True:
                seen = changes.messages
                await asyncio.wait([changes.ended], timeout=self._probe_s)
                if changes.ended.done() or changes.messages == seen == changes.probed:
                    raise RedisConnectionError("the listener's connection ended or is silent")
                # Without the tracking connection the subscribed one stays silent, so probe both.
                await tracking.send_command("PING", check_health=False)
                await tracking.read_response()
                changes.probe()
        finally:
            changes.close()

    def _changed(self, message: Any) -> None:
        if message[0] == b"message" and not self._keys.isdisjoint(message[2] or ()):
            self._hint()


class ChangeListener(asyncio.Protocol):
    """Reads the messages of a subscribed connection, a millisecond after they came."""

    def __init__(self, transport: Any, changed: Callable[[Any], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._before = (
            transport.get_protocol()
        )  # redis-py's own; it is notified when the connection ends
        self._changed = changed
        self._reader = hiredis.Reader()
        self._due: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.messages = 0
        self.probed = -1  # number of messages at the last probe
        transport.set_protocol(self)

    def probe(self) -> None:
        """Send PING; its answer counts as a message."""
        self.probed = self.messages
        self._transport.write(hiredis.pack_command(("PING",)))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._due is None:
            self._due = self._loop.call_later(_SETTLE_S, self._read)

    def _read(self) -> None:
        self._due = None
        try:
            while (message := self._reader.gets()) is not False:
                if isinstance(message, Exception):
                    raise message
                self.messages += 1
                self._changed(message)
        except hiredis.HiredisError:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._before.connection_lost(exc)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._transport.abort()
