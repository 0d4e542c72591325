"""
Builds every Redis client, for the cache, the queue and the workers, and closes it.

(siblings.py copies a client that was built here.)

Every client has connect and socket timeouts, keepalive, health checks and a
name. TLS verifies certificate and host name, of the Sentinels too. Opening a
connection is retried with jittered backoff. Newer redis-py also sends a command
again when its reply is lost, so every script must be idempotent by its ids.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ReadOnlyError, RedisClusterException, RedisError

from cache.connection import embedded
from cache.connection.cancellation import TCPConnection, TLSConnection, UnixConnection
from cache.connection.master import MasterPool, Sentinels
from cache.connection.owner import OwnerPool
from cache.connection.urls import Target, parse_url, redacted
from cache.errors import UnsupportedRedisURL

_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.02, 0.5
# A server that was demoted keeps its clients' connections open and refuses every write. These
# errors also end the connection, so that the next one is made to the new master.
CONNECT_ANEW = (ReadOnlyError,)
OUTAGE = (RedisError, RedisClusterException, OSError, asyncio.TimeoutError)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How to connect. Times are seconds, files are PEM."""

    connect_timeout_s: float = 2.0
    socket_timeout_s: float | None = 5.0
    health_check_interval_s: float = 30.0
    max_connections: int = 100
    retries: int = 3
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)


def _retry(options: PoolOptions) -> Retry:
    return Retry(ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S), options.retries)


def _common(options: PoolOptions, name: str) -> dict[str, Any]:
    return {
        "client_name": name,
        "socket_timeout": options.socket_timeout_s,
        "retry": _retry(options),
        # RESP3 pushes can desynchronize a pooled connection (docs/architecture.md).
        "protocol": 2,
    }


def _login(target: Target) -> dict[str, Any]:
    pairs = {"username": target.username, "password": target.password}
    return {key: value for key, value in pairs.items() if value is not None}


async def _log_in(connection: Any) -> None:
    """
    Log in, without a health check on the way.

    redis-py 5.3 sends its PING before the first command of a new connection. It takes a server
    that refuses it (no password given, still loading) for a lost connection, connects anew
    inside of connecting, and does not end.
    """
    interval_s, connection.health_check_interval = connection.health_check_interval, 0
    try:
        await connection.on_connect()
    finally:
        connection.health_check_interval = interval_s
    connection.next_health_check = asyncio.get_running_loop().time() + interval_s


def _tls(options: PoolOptions) -> dict[str, Any]:
    files = {
        "ssl_ca_certs": options.ca_file,
        "ssl_certfile": options.cert_file,
        "ssl_keyfile": options.key_file,
    }
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        **{key: str(value) for key, value in files.items() if value is not None},
    }


def build_client(
    url: str,
    options: PoolOptions,
    *,
    name: str,
    client_class: Callable[..., Any] = Redis,
    tag: str = "",
    **client_options: Any,
) -> Any:
    """
    Build a client for a URL. It connects at its first command.

    On a cluster, with a `tag` its commands go to the node of that hash tag's slot (owner.py);
    without one, a `RedisCluster` sends each to the node of its key.

    `client_class` is `redis.asyncio.Redis` or a subclass, such as arq's; it is called with
    `connection_pool=`. A cluster always has redis-py's class.

    Raises:
        UnsupportedRedisURL: the form is unknown, an embedded:// server was not acquired first, or
            `client_class` cannot serve a cluster.
    """
    target = parse_url(url)
    if target.kind == "embedded":
        raise UnsupportedRedisURL(
            f"{redacted(url)}: no server runs for this URL yet; call embedded.acquire first"
        )
    keywords = {**_common(options, name), **_login(target)}
    if target.kind == "cluster" and not tag:
        client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in target.nodes],
            socket_connect_timeout=options.connect_timeout_s,
            socket_keepalive=True,
            max_connections=options.max_connections,
            **({"ssl": True, **_tls(options)} if target.tls else {}),
            **keywords,
        )
        _set_connection_class(client, TLSConnection if target.tls else TCPConnection)
        return client
    # What the class uses itself comes on top of what its callers may use.
    most = options.max_connections + getattr(client_class, "reserved_connections", 0)
    pool = _connection_pool(target, replace(options, max_connections=most), keywords, tag)
    return client_class(connection_pool=pool, **client_options)


def _set_connection_class(client: Any, connection_class: type) -> None:
    """Set the class of a cluster's connections. RedisCluster has no argument for it."""
    client.connection_kwargs["connection_class"] = connection_class
    for node in client.nodes_manager.startup_nodes.values():
        node.connection_class = connection_class


def _connection_pool(
    target: Target, options: PoolOptions, keywords: dict[str, Any], tag: str
) -> Any:
    keywords = {
        **keywords,
        "db": target.db,
        "health_check_interval": options.health_check_interval_s,
        "redis_connect_func": _log_in,
        "socket_connect_timeout": options.connect_timeout_s,
        "retry_on_error": list(CONNECT_ANEW),
    }
    if target.kind == "unix":
        keywords |= {"connection_class": UnixConnection, "path": target.path}
    else:
        keywords["socket_keepalive"] = True
    # Callers over the limit wait for a connection. With ConnectionPool they would fail.
    wait_s = options.connect_timeout_s + (options.socket_timeout_s or 0)
    keywords |= {"max_connections": options.max_connections, "timeout": wait_s}
    if target.kind == "sentinel":
        files = _tls(options) if target.tls else {}
        # A Sentinel names the master, so it is verified by TLS as the master is. It has its own
        # password.
        login = {"username": options.sentinel_username, "password": options.sentinel_password}
        of_sentinels = {
            "socket_timeout": options.connect_timeout_s,
            "socket_connect_timeout": options.connect_timeout_s,
            "protocol": keywords["protocol"],
            **{key: value for key, value in login.items() if value is not None},
            **({"ssl": True, **files} if target.tls else {}),
        }
        sentinels = Sentinels(target.nodes, of_sentinels)
        return MasterPool(target.service, sentinels, tls=target.tls, **keywords, **files)
    if target.kind == "cluster":
        tls = _tls(options) if target.tls else {}
        return OwnerPool(tag, target.nodes, tls=target.tls, **keywords, **tls)
    if target.kind == "standalone":
        host, port = target.nodes[0]
        keywords |= {"host": host, "port": port}
        keywords["connection_class"] = TLSConnection if target.tls else TCPConnection
        if target.tls:
            keywords |= _tls(options)
    return BlockingConnectionPool(**keywords)


@asynccontextmanager
async def open_pool(
    url: str,
    options: PoolOptions,
    *,
    name: str,
    client_class: Callable[..., Any] = Redis,
    tag: str = "",
    **client_options: Any,
) -> AsyncIterator[Any]:
    """
    Build a client and close it after the block. Starts and stops an embedded:// server too.

    Does not connect, so the server may start later: see readiness.py.
    """
    is_embedded = parse_url(url).kind == "embedded"
    real_url = embedded.acquire(url) if is_embedded else url
    try:
        client = build_client(
            real_url, options, name=name, client_class=client_class, tag=tag, **client_options
        )
        try:
            yield client
        finally:
            await close_client(client)
    finally:
        if is_embedded:
            embedded.release(url)


async def close_client(client: Any) -> None:
    """Close a client and every connection of its pool."""
    if isinstance(client, RedisCluster):
        await client.aclose()
        return
    await client.aclose(close_connection_pool=True)
    if isinstance(client.connection_pool, OwnerPool):
        await client.connection_pool.topology.close()
    if isinstance(client.connection_pool, MasterPool):
        await client.connection_pool.close()
