"""
Waking an idle worker without polling.

Our clients push a token that one waiting worker pops (`BZPOPMIN`). Stock arq's
clients push none: one worker of each queue listens for changes of the queues
(`CLIENT TRACKING`) and takes them for tokens. A token that was lost with a
dying worker costs at most `EngineOptions.poll_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cache.lane import Lane
from cache.pool import OUTAGE
from worker.engine.records import EngineKeys

# A wait has a connection and a limit of its own: few commands when idle.
_WAIT_S, _LATE_S = 20, 5.0
_RETRY_S = 0.5
# The listener's connections are probed after so long without a change.
_QUIET_S = 30.0
# Changes that come together are one reason to look.
_SETTLE_S = 0.002


class Waker:
    """Waits for tokens while the worker has nothing to do."""

    def __init__(self, client: Any, keys: EngineKeys, kick: Callable[[], None]) -> None:
        self._lane = Lane(client, timeout_s=_WAIT_S + _LATE_S)
        self._key = keys.wake
        self._kick = kick
        self._idle = asyncio.Event()

    def set_idle(self, idle: bool) -> None:
        """Whether this worker could take a job and knows of none that is due."""
        if idle:
            self._idle.set()
        else:
            self._idle.clear()

    def hint(self) -> None:
        """There may be something to take; of interest only to an idle worker."""
        if self._idle.is_set():
            self._kick()

    async def run(self) -> None:
        """Wait until cancelled."""
        try:
            while True:
                await self._idle.wait()
                try:
                    token = await self._lane.execute("BZPOPMIN", self._key, _WAIT_S)
                    if token and not self._idle.is_set():
                        # Busy by now: the token is for another worker.
                        await self._lane.execute("ZADD", self._key, 0, "w")
                except OUTAGE:
                    # The pump finds out by itself and tells; here only the pace matters.
                    await asyncio.sleep(_RETRY_S)
                else:
                    if token:
                        self._kick()
        finally:
            await self._lane.close()


class Listener:
    """Wakes this worker on changes that came without a token. Run by one worker a queue."""

    def __init__(self, client: Any, keys: EngineKeys, hint: Callable[[], None]) -> None:
        self._client = client
        self._prefix = keys.default_queue
        # Other keys begin like the queues': of running jobs, of health.
        self._keys = {key.encode() for key in (*keys.queues, keys.schedules)}
        self._hint = hint

    async def run(self) -> None:
        """Listen until cancelled; reconnects by itself."""
        while True:
            try:
                await self._listen()
            except OUTAGE:
                await asyncio.sleep(_RETRY_S)

    async def _listen(self) -> None:
        # Subscribed to invalidations, so never given back to the pool.
        connection = self._client.connection_pool.make_connection()
        try:
            await connection.connect()
            await connection.send_command("CLIENT", "ID")
            own = await connection.read_response()
            await connection.send_command("SUBSCRIBE", "__redis__:invalidate")
            await connection.read_response()
            # RESP2: a second connection tracks, and redirects here.
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
        while True:
            try:
                message = await connection.read_response(
                    timeout=_QUIET_S, disconnect_on_error=False
                )
            except TimeoutError:
                message = None
            if message is None:
                # Quiet, or gone: both connections must answer. redis-py's own check would not
                # know the answer of one that is subscribed, and connect it anew without that.
                await tracking.send_command("PING", check_health=False)
                await tracking.read_response()
                await connection.send_command("PING", check_health=False)
                continue
            if message[0] == b"message" and not self._keys.isdisjoint(message[2] or ()):
                self._hint()
                await asyncio.sleep(_SETTLE_S)
