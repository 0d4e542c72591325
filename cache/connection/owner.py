"""
Pools connections to the cluster node that owns the slot of one hash tag.

All keys of the queue have one hash tag, so a script is atomic over them, and a redis-py
client on this pool works as on a single server: MULTI, pipelines, blocking commands,
pub/sub. When the slot moves, every connection to the former owner is closed, silent and
blocked ones included, and the next command connects to the new owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cache.connection.cancellation import TCPConnection, TLSConnection
from cache.connection.elsewhere import LeavingReplies, whole_text
from cache.connection.protocol import Ended
from cache.connection.topology import Address, Topology, View, read_view

# First words of errors of a node that does not serve the slot: another node may.
_ELSEWHERE = frozenset({"MOVED", "CLUSTERDOWN", "MASTERDOWN", "READONLY"})
# Of a node that may serve it soon: a part of the slot has moved, or replicas are missing.
_LATER = frozenset({"TRYAGAIN", "ASK", "NOREPLICAS"})


class OwnerReplies(LeavingReplies):
    """Reads the owner's replies. A command that the owner cannot serve now is sent again."""

    elsewhere, later = _ELSEWHERE, _LATER


class _Silent(Exception):
    """No node answered in time. redis-py does not reconnect after this, and raises its own error."""


class _ToOwner:
    """Mixed into a connection class: connects to the owner of the slot."""

    pool: OwnerPool
    host: str
    port: int
    is_connected: bool
    disconnect: Any

    @property
    def address(self) -> Address:
        return self.host, int(self.port)

    async def _connect(self) -> None:
        try:
            self.host, self.port = await self.pool.topology.owner()
        except RedisTimeoutError as exc:
            raise _Silent(str(exc)) from exc
        await super()._connect()  # type: ignore[misc]

    async def connect(self, *args: Any, **kwargs: Any) -> None:
        if self.is_connected:
            return
        try:
            await super().connect(*args, **kwargs)  # type: ignore[misc]
        except (RedisError, OSError) as exc:
            self.pool.suspect(self, str(exc))
            raise
        self.pool.topology.confirm(self.address)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as exc:
            text = whole_text(exc)
            word = text.partition(" ")[0]
            if word not in _ELSEWHERE | _LATER:
                raise
            await self.disconnect(nowait=True)
            if word in _ELSEWHERE:
                self.pool.suspect(self, text)
            raise Ended(text) from None
        except (RedisConnectionError, RedisTimeoutError) as exc:
            self.pool.suspect(self, str(exc))
            raise


class _OwnerConnection(_ToOwner, TCPConnection):
    """A connection by TCP."""


class _OwnerTLSConnection(_ToOwner, TLSConnection):
    """A connection by TLS."""


class OwnerPool(BlockingConnectionPool):  # type: ignore[misc]
    """
    Connections to the owner of a tag's slot.

    Args:
        tag: hash tag of all keys, such as `{arq}`.
        seeds: nodes to ask for the owner.
        tls: whether to connect by TLS; its options are among the keywords.
        keywords: those of redis-py's connections and of `BlockingConnectionPool`.
    """

    replies_class = OwnerReplies

    def __init__(self, tag: str, seeds: Sequence[Address], *, tls: bool, **keywords: Any) -> None:
        # redis-py sends a command again after these errors.
        keywords["retry_on_error"] = list({*keywords.get("retry_on_error", ()), Ended})
        of_pool: dict[str, Any] = {
            name: keywords.pop(name) for name in ("max_connections", "timeout") if name in keywords
        }
        self.tag, self.tls = tag, tls
        self._slot = key_slot(tag.encode())
        self._keywords = keywords
        self._of_pool = of_pool
        self.topology = Topology(seeds, self._ask, self._end_others)
        super().__init__(
            connection_class=_OwnerTLSConnection if tls else _OwnerConnection, **of_pool, **keywords
        )

    def sibling(self, **changed: Any) -> OwnerPool:
        """A second pool for the same slot, for another event loop."""
        keywords = {**self._of_pool, **self._keywords, **changed}
        return OwnerPool(self.tag, self.topology.nodes, tls=self.tls, **keywords)

    def make_connection(self) -> Any:
        connection = super().make_connection()
        connection.pool = self
        return connection

    async def ensure_connection(self, connection: Any) -> None:
        if connection.is_connected and connection.address != await self.topology.owner():
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)

    def suspect(self, connection: Any, reason: str) -> None:
        """Report a lost connection, or that its node does not serve the slot."""
        address = connection.address
        named = None
        if reason.startswith("MOVED "):
            host, _, port = reason.split(" ")[2].rpartition(":")
            named = (host or address[0], int(port))
        self.topology.suspect(address, named)

    def _end_others(self, owner: Address) -> None:
        for connection in [*self._available_connections, *self._in_use_connections]:
            if connection.is_connected and connection.address != owner:
                connection._writer.transport.abort()

    async def _ask(self, address: Address) -> View:
        kind = TLSConnection if self.tls else TCPConnection
        connection = kind(host=address[0], port=address[1], **self._keywords)
        try:
            await connection.connect()
            await connection.send_command("CLUSTER", "SLOTS")
            ranges = await connection.read_response(disable_decoding=True)
            await connection.send_command("CLUSTER", "INFO")
            info = await connection.read_response(disable_decoding=True)
            return read_view(self._slot, ranges, info, address)
        finally:
            await asyncio.shield(connection.disconnect(nowait=True))


async def rest(client: Any, seconds: float) -> None:
    """Sleep before a call is sent again; on a cluster, at most until the slot is served."""
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, OwnerPool):
        await pool.topology.rest(seconds)
    else:
        await asyncio.sleep(seconds)
