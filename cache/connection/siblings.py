"""
Builds further clients of a client's server, and a pool for one node of a cluster.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import Connection

from cache.connection.master import MasterPool
from cache.connection.owner import OwnerPool


def sibling(client: Any, *, name: str, socket_timeout_s: float | None = None) -> Redis:
    """
    A second client of the same server with separate connections, for another event loop.

    Works for any client with a connection pool, arq's too, and so not for a `RedisCluster`.
    """
    pool = client.connection_pool
    keywords = {**pool.connection_kwargs, "client_name": name}
    # No call may wait forever on a server that hangs.
    keywords["socket_timeout"] = socket_timeout_s or keywords.get("socket_timeout") or 5.0
    keywords["socket_connect_timeout"] = keywords.get("socket_connect_timeout") or 2.0
    if isinstance(pool, OwnerPool | MasterPool):
        return Redis(connection_pool=pool.sibling(**keywords))
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **keywords))


def node_pool(client: Any, host: str, port: int) -> ConnectionPool:
    """A pool for one node of a cluster, with the options of the cluster's client."""
    of_client = {"connection_class", "parser_class", "response_callbacks", "event_dispatcher"}
    keywords = {k: v for k, v in client.connection_kwargs.items() if k not in of_client}
    keywords |= {"host": host, "port": port, "max_connections": 2**31}
    return ConnectionPool(
        connection_class=client.connection_kwargs.get("connection_class", Connection), **keywords
    )


def url_of(client: Any) -> str:
    """The URL of a client's server, without user and password. Not for a `RedisCluster`."""
    pool = client.connection_pool
    options = pool.connection_kwargs
    if isinstance(pool, OwnerPool):
        hosts = ",".join(f"{host}:{port}" for host, port in pool.topology.seeds)
        return f"{'rediss' if pool.tls else 'redis'}+cluster://{hosts}"
    db = options.get("db") or 0
    if "path" in options:
        return f"unix://{options['path']}?db={db}"
    scheme = "rediss" if issubclass(pool.connection_class, SSLConnection) else "redis"
    if isinstance(pool, MasterPool):
        hosts = ",".join(f"{host}:{port}" for host, port in pool.sentinels.nodes)
        return f"{scheme}+sentinel://{hosts}/{pool.service}/{db}"
    return f"{scheme}://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{db}"
