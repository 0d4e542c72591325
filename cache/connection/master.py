"""
A pool of connections to the master that Sentinels name.

A master that was replaced may not know it yet, or refuse without ending its clients'
connections. Whatever it refuses for that ends the connection, and the next command asks
the Sentinels. Once they name another master, every connection to the one before ends.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import (
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.exceptions import ResponseError

from cache.connection.cancellation import KeepsCancellation
from cache.connection.elsewhere import LeavingReplies, whole_text
from cache.connection.protocol import Ended

# First words of the errors of a former master: a replica, one without its master, and one that
# its replicas have left.
_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS"})


class MasterReplies(LeavingReplies):
    """Replies of the master. After an error of a former one, the next call asks the Sentinels."""

    elsewhere = _ELSEWHERE


class _LeavesFormerMaster(KeepsCancellation):
    """Comes before a connection's class, and wraps its method."""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            # The Sentinel's class in between knows READONLY only, and gives it another name.
            return await Connection.read_response(self, *args, **kwargs)
        except ResponseError as exc:
            text = whole_text(exc)
            if text.partition(" ")[0] not in _ELSEWHERE:
                raise
            await self.disconnect(nowait=True)
            raise Ended(text) from None


class _MasterConnection(_LeavesFormerMaster, SentinelManagedConnection):  # type: ignore[misc]
    """A connection by TCP."""


class _MasterTLSConnection(_LeavesFormerMaster, SentinelManagedSSLConnection):  # type: ignore[misc]
    """A connection by TLS."""


class MasterPool(SentinelConnectionPool):  # type: ignore[misc]
    """
    Connections to the master of a service.

    Args:
        service: its name at the Sentinels.
        sentinels: redis-py's object that asks them.
        tls: whether to connect by TLS; its options are among the keywords.
        keywords: those of redis-py's connections.
    """

    replies_class = MasterReplies
    master_address: tuple[str, int] | None

    def __init__(self, service: str, sentinels: Any, *, tls: bool, **keywords: Any) -> None:
        # redis-py sends a command again after these errors, as often as its `retry` says.
        keywords["retry_on_error"] = list({*keywords.get("retry_on_error", ()), Ended})
        keywords["connection_class"] = _MasterTLSConnection if tls else _MasterConnection
        super().__init__(service, sentinels, **keywords)

    async def get_master_address(self) -> tuple[str, int]:
        """Ask the Sentinels, and end the connections to a master before this one."""
        address: tuple[str, int] = await self.sentinel_manager.discover_master(self.service_name)
        if address != self.master_address:
            self.master_address = address
            for connection in [*self._available_connections, *self._in_use_connections]:
                if connection.is_connected and (connection.host, connection.port) != address:
                    # At once: redis-py's own way waits, and meanwhile hands the connection out.
                    connection._writer.transport.abort()
        return address
