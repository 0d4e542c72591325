"""Chooses the connection for a client: to one server or to a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio.cluster import RedisCluster

from cache.connection.cluster import ClusterConnection
from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.pool import close_client
from cache.connection.protocol import Connection
from cache.connection.siblings import sibling


def connect(client: Any, timeout_s: float) -> Connection:
    """A connection from the client's pool."""
    if isinstance(client, RedisCluster):
        return ClusterConnection(client, timeout_s=timeout_s)
    return MultiplexedConnection(client, timeout_s=timeout_s)


@asynccontextmanager
async def connect_beside(client: Any, timeout_s: float, *, name: str) -> AsyncIterator[Connection]:
    """A connection outside of the client's pool, for another event loop."""
    if isinstance(client, RedisCluster):
        connection: Connection = ClusterConnection(client, timeout_s=timeout_s)
        try:
            yield connection
        finally:
            await connection.close()
        return
    other = sibling(client, name=name, socket_timeout_s=timeout_s)
    connection = MultiplexedConnection(other, timeout_s=timeout_s)
    try:
        yield connection
    finally:
        await connection.close()
        await close_client(other)
