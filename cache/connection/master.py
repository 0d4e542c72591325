"""
Pools connections to the master that Sentinels name.

A replaced master may not know yet that it was replaced, or it refuses commands without
closing its clients' connections. Such a refusal closes the connection, and the next command
asks the Sentinels. They are also asked while the master is silent, long before a call times
out. Once they name another master, every connection to the former one is closed.

All Sentinels are asked at once, and the answer with the newest configuration counts: a
Sentinel that a partition has cut off together with the former master still names that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cache.connection.cancellation import TCPConnection, TLSConnection
from cache.connection.elsewhere import LeavingReplies, whole_text
from cache.connection.protocol import SILENT_S, Ended
from cache.connection.tasks import end

# First words of the errors of a former master: it is a replica, has lost its own master, or was
# left by its replicas.
_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS"})
# Time for the other Sentinels after the first answer: they may be stopped.
_OTHERS_S = 0.2
# Pause between two rounds of questions while the master is suspected.
_PACE_S = 0.2
_OUTAGE = (RedisError, OSError, asyncio.TimeoutError)


class MasterReplies(LeavingReplies):
    """Reads the master's replies. After an error of a former master, the next call asks the Sentinels."""

    elsewhere = _ELSEWHERE


class _ToMaster:
    """Mixed into a connection class: connects to the master."""

    pool: MasterPool
    host: str
    port: int
    is_connected: bool
    disconnect: Any
    _writer: Any
    _opening: asyncio.Timeout | None = None

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    async def _connect(self) -> None:
        # On each connect: some releases of redis-py ask the Sentinels only for the first one.
        self.host, self.port = await self.pool.master()
        try:
            async with asyncio.timeout(None) as self._opening:
                await super()._connect()  # type: ignore[misc]
        finally:
            self._opening = None

    def leave(self) -> None:
        """Close the connection, or stop opening it: a stopped server answers no TLS handshake."""
        if self.is_connected:
            self._writer.transport.abort()
        elif self._opening is not None:
            self._opening.reschedule(asyncio.get_running_loop().time())
            self._opening = None

    async def connect(self, *args: Any, **kwargs: Any) -> None:
        if self.is_connected:
            return
        self._expect_soon()
        try:
            await super().connect(*args, **kwargs)  # type: ignore[misc]
        except _OUTAGE:
            if self.pool.names(self.address):
                raise
            await super().connect(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._late.cancel()

    def _expect_soon(self) -> None:
        """Keep reporting the server: a stopped one accepts connections, but answers no login."""
        self._late = asyncio.get_running_loop().call_later(SILENT_S, self._report)

    def _report(self) -> None:
        self.pool.suspect(self, "silent")
        self._expect_soon()

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as exc:
            text = whole_text(exc)
            if text.partition(" ")[0] not in _ELSEWHERE:
                raise
            await self.disconnect(nowait=True)
            raise Ended(text) from None


class _MasterConnection(_ToMaster, TCPConnection):
    """A connection by TCP."""


class _MasterTLSConnection(_ToMaster, TLSConnection):
    """A connection by TLS."""


class Sentinels(Sentinel):  # type: ignore[misc]
    """
    The Sentinels of a service.

    Args:
        nodes: their hosts and ports.
        options: keywords of redis-py's connections to them; `ssl` for TLS.
    """

    def __init__(self, nodes: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        super().__init__(nodes, sentinel_kwargs=dict(options))
        self.nodes = tuple(nodes)
        for each in self.sentinels:
            each.connection_pool.connection_class = (
                TLSConnection if options.get("ssl") else TCPConnection
            )

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """
        The master by the newest configuration.

        Raises:
            MasterNotFoundError: no Sentinel that answered in time names a master that is up.
            ResponseError: a Sentinel refused, for example the login.
        """
        pending = {asyncio.ensure_future(each.sentinel_masters()) for each in self.sentinels}
        states: list[dict[str, Any]] = []
        errors: list[BaseException] = []
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending,
                    timeout=_OTHERS_S if states else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                errors += [error for task in done if (error := task.exception())]
                found = [task.result().get(service_name) for task in done if not task.exception()]
                states += [s for s in found if s and self.check_master_state(s, service_name)]
        finally:
            await end(*pending)
        if states:
            newest = max(states, key=lambda state: state.get("config-epoch", 0))
            return newest["ip"], newest["port"]
        for error in errors:
            if not isinstance(error, RedisConnectionError | RedisTimeoutError):
                raise error
        causes = ", ".join(repr(error) for error in errors)
        raise MasterNotFoundError(f"No master found for {service_name!r} : {causes}")


class MasterPool(BlockingConnectionPool):  # type: ignore[misc]
    """
    Connections to the master of a service.

    Args:
        service: the master's name at the Sentinels.
        sentinels: the Sentinels to ask.
        tls: whether to connect by TLS; its options are among the keywords.
        keywords: those of redis-py's connections and of `BlockingConnectionPool`.
    """

    replies_class = MasterReplies

    def __init__(self, service: str, sentinels: Sentinels, *, tls: bool, **keywords: Any) -> None:
        # redis-py sends a command again after these errors, as often as its `retry` says.
        keywords["retry_on_error"] = list({*keywords.get("retry_on_error", ()), Ended})
        self.service, self.sentinels, self.tls = service, sentinels, tls
        self._keywords = keywords
        self._master: tuple[str, int] | None = None
        self._looking: asyncio.Task[None] | None = None
        # Includes connections that do not return to the pool, such as subscribed ones.
        self._made: WeakSet[Any] = WeakSet()
        super().__init__(
            connection_class=_MasterTLSConnection if tls else _MasterConnection, **keywords
        )

    def sibling(self, **changed: Any) -> MasterPool:
        """A second pool for the same service, for another event loop."""
        sentinels = Sentinels(self.sentinels.nodes, self.sentinels.sentinel_kwargs)
        return MasterPool(self.service, sentinels, tls=self.tls, **{**self._keywords, **changed})

    def make_connection(self) -> Any:
        connection = super().make_connection()
        connection.pool = self
        self._made.add(connection)
        return connection

    async def master(self) -> tuple[str, int]:
        """Ask the Sentinels for the address, and close the connections to any other server."""
        self._master = address = await self.sentinels.discover_master(self.service)
        for connection in list(self._made):
            if connection.address != address:
                connection.leave()
        return address

    def names(self, address: tuple[str, int]) -> bool:
        """Whether this is the last known master."""
        return address == self._master

    def suspect(self, _connection: Any, _reason: str) -> None:
        """Report a lost or silent connection; call this again while it stays silent."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        with suppress(*_OUTAGE):
            await self.master()
        await asyncio.sleep(_PACE_S)

    async def close(self) -> None:
        """Stop asking, and close the connections to the Sentinels."""
        if self._looking is not None and self._looking.get_loop() is asyncio.get_running_loop():
            await end(self._looking)
        for sentinel in self.sentinels.sentinels:
            await sentinel.aclose(close_connection_pool=True)
