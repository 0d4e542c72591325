"""Chooses the connection for a client: to one server or to a cluster."""

from __future__ import annotations

from typing import Any

from redis.asyncio.cluster import RedisCluster

from cache.connection.cluster import ClusterConnection
from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.protocol import Connection


def connect(client: Any, timeout_s: float) -> Connection:
    """A connection from the client's pool."""
    if isinstance(client, RedisCluster):
        return ClusterConnection(client, timeout_s=timeout_s)
    return MultiplexedConnection(client, timeout_s=timeout_s, follows_run=True)
