"""Which connection a client's cache runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio.cluster import RedisCluster

from cache.connection.cluster import ClusterConnection
from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.pool import close_client, sibling
from cache.connection.protocol import Connection


def connect(client: Any, timeout_s: float) -> Connection:
    """Over connections of the client's own pool."""
    if isinstance(client, RedisCluster):
        return ClusterConnection(client, timeout_s=timeout_s)
    return MultiplexedConnection(client, timeout_s=timeout_s)


@asynccontextmanager
async def connect_beside(client: Any, timeout_s: float, *, name: str) -> AsyncIterator[Connection]:
    """Over connections of its own to the same server, for another event loop."""
    if isinstance(client, RedisCluster):
        connection: Connection = ClusterConnection(client, timeout_s=timeout_s)
        try:
            yield connection
        finally:
            await connection.close()
        return
    own = sibling(client, name=name, socket_timeout_s=timeout_s)
    connection = MultiplexedConnection(own, timeout_s=timeout_s)
    try:
        yield connection
    finally:
        await connection.close()
        await close_client(own)
