"""
The only place that constructs a Redis client: cache, queue and workers alike.

Forms: redis://, rediss:// (certificate and host name verified), unix://,
redis+sentinel://host:port,.../service[/db] (rediss+sentinel:// with TLS to the
Sentinels and the servers), redis+cluster://host:port,... and
embedded://[/directory]. Every client has connect and socket timeouts,
keepalive, health checks and a name. Opening a connection is retried with
jittered backoff; newer redis-py also sends a command again when its reply is
lost, so every script of ours is idempotent by the ids it is given.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog
from redis.asyncio import (
    BlockingConnectionPool,
    ConnectionPool,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ReadOnlyError, RedisError

from cache.connection import embedded
from cache.errors import RedisUnavailable, UnsupportedRedisURL

log = structlog.get_logger(__name__)

_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.02, 0.5
_READY_BASE_S, _READY_CAP_S = 0.1, 5.0
# A server that was demoted behind its address keeps its clients' connections open, and refuses
# every write: these errors end the connection too, so that the next one leads to its successor.
CONNECT_ANEW = (ReadOnlyError,)
OUTAGE = (RedisError, OSError, asyncio.TimeoutError)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How to connect. Times are seconds; the files are PEM."""

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


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed Redis URL."""

    kind: str  # "standalone" | "unix" | "sentinel" | "cluster" | "embedded"
    nodes: tuple[tuple[str, int], ...] = ()
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    path: str = ""  # unix socket
    service: str = ""  # sentinel's master name


# What may be shown of a URL as it stands; everything else is `***`.
_SHOWN_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}:")
_SHOWN_HOSTS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]*)(:\d{1,5})?(,|$)")
_SHOWN_PATH = re.compile(r"[A-Za-z0-9_./~ -]*")
_SHOWN_QUERY = re.compile(r"(\?db=\d{1,5})?")


def redacted(url: str) -> str:
    """The URL for logs and errors: nothing of it that might be a password, however it is written."""
    scheme, credentials, rest = _apart(url)
    if not re.fullmatch(r"[a-z+]{1,32}", scheme):
        return "***"
    hosts, path, query = re.match(r"([^/?#]*)([^?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    user = _SHOWN_USER.match(credentials)
    login = f"{user[0] if user else ''}***@" if credentials else ""
    if _SHOWN_HOSTS.sub("", hosts):
        return f"{scheme}://{login}***"
    path = path if _SHOWN_PATH.fullmatch(path) else "/***"
    query = query if _SHOWN_QUERY.fullmatch(query) else query[0] + "***"
    return f"{scheme}://{login}{hosts}{path}{query}"


def _apart(url: str) -> tuple[str, str, str]:
    """Scheme, `user:password`, and the rest. A password may hold any character, `@ # ? /` too."""
    scheme, _, rest = url.partition("://")
    if rest.startswith("/"):
        return scheme, "", rest
    # A socket's path may hold an `@` of its own.
    at = rest.rfind("@/" if scheme == "unix" else "@")
    return scheme, rest[: max(at, 0)], rest[at + 1 :]


def parse_url(url: str) -> Target:
    """
    Take a Redis URL apart.

    Raises:
        UnsupportedRedisURL: unknown scheme, bad port or database number.
    """
    scheme, credentials, rest = _apart(url)
    scheme = scheme.lower()
    tls = scheme.startswith("rediss")
    username, _, password = credentials.partition(":")
    login = (unquote(username) or None, unquote(password) or None)
    try:
        components = urlsplit(f"//{rest}")
        query, hosts = dict(parse_qsl(components.query)), components.netloc
        if scheme == "embedded":
            return Target("embedded")
        if scheme == "unix":
            return Target(
                "unix", (), int(query.get("db", 0)), *login, path=unquote(components.path)
            )
        default_port = 26379 if scheme.endswith("+sentinel") else 6379
        nodes = tuple(_host_port(item, default_port) for item in hosts.split(","))
        path = [p for p in components.path.split("/") if p]
        if scheme in {"redis", "rediss"} and len(nodes) == 1:
            db = int(query.get("db", path[0] if path else 0))
            return Target("standalone", nodes, db, *login, tls=tls)
        if scheme in {"redis+sentinel", "rediss+sentinel"} and path:
            db = int(path[1]) if len(path) > 1 else 0
            return Target("sentinel", nodes, db, *login, tls=tls, service=path[0])
        if scheme in {"redis+cluster", "rediss+cluster"}:
            return Target("cluster", nodes, 0, *login, tls=tls)
    except ValueError:
        # The error's own text repeats what it could not read.
        raise UnsupportedRedisURL(
            f"{redacted(url)}: its host, port or database number cannot be read"
        ) from None
    raise UnsupportedRedisURL(f"{redacted(url)} has no form this service knows")


def _host_port(text: str, default: int) -> tuple[str, int]:
    components = urlsplit("//" + text)
    return components.hostname or "localhost", components.port or default


def _retry(options: PoolOptions) -> Retry:
    return Retry(ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S), options.retries)


def _common(options: PoolOptions, name: str) -> dict[str, Any]:
    return {
        "client_name": name,
        "socket_timeout": options.socket_timeout_s,
        "health_check_interval": options.health_check_interval_s,
        "retry": _retry(options),
        # RESP3 pushes can desynchronise a pooled connection (docs/architecture.md).
        "protocol": 2,
    }


def _login(target: Target) -> dict[str, Any]:
    pairs = {"username": target.username, "password": target.password}
    return {key: value for key, value in pairs.items() if value is not None}


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


def refuse_cluster(url: str) -> None:
    """
    The queue's scripts and stock arq's keys need all keys on one node.

    Raises:
        UnsupportedRedisURL: the URL names a cluster; the message says what to set instead.
    """
    if parse_url(url).kind == "cluster":
        raise UnsupportedRedisURL(
            f"{redacted(url)}: the queue cannot run on a cluster; give it a standalone or Sentinel "
            "server (LETTA_REDIS_URL) and the cache the cluster (LETTA_CACHE_REDIS_URL)"
        )


def build_client(
    url: str,
    options: PoolOptions,
    *,
    name: str,
    client_class: Callable[..., Any] = Redis,
    **client_options: Any,
) -> Any:
    """
    A client for a URL; connects at its first command. embedded:// must be acquired before.

    `client_class` (a subclass of `redis.asyncio.Redis`, such as arq's) is called
    with `connection_pool=`; a cluster has its own class and takes none.

    Raises:
        UnsupportedRedisURL: the form is unknown, or the class cannot serve a cluster.
    """
    target = parse_url(url)
    if target.kind == "embedded":
        raise UnsupportedRedisURL("acquire an embedded:// server before building its client")
    keywords = {**_common(options, name), **_login(target)}
    if target.kind == "cluster":
        if client_class is not Redis:
            refuse_cluster(url)
        return RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in target.nodes],
            socket_connect_timeout=options.connect_timeout_s,
            socket_keepalive=True,
            max_connections=options.max_connections,
            **({"ssl": True, **_tls(options)} if target.tls else {}),
            **keywords,
        )
    # Connections that a class holds for itself are not its callers'.
    most = options.max_connections + getattr(client_class, "own_connections", 0)
    pool = _connection_pool(target, replace(options, max_connections=most), keywords)
    return client_class(connection_pool=pool, **client_options)


def _connection_pool(target: Target, options: PoolOptions, keywords: dict[str, Any]) -> Any:
    keywords = {
        **keywords,
        "db": target.db,
        "socket_connect_timeout": options.connect_timeout_s,
        "retry_on_error": list(CONNECT_ANEW),
    }
    if target.kind == "unix":
        keywords |= {"connection_class": UnixDomainSocketConnection, "path": target.path}
    else:
        keywords["socket_keepalive"] = True
    if target.kind == "sentinel":
        tls = {"ssl": True, **_tls(options)} if target.tls else {}
        # Who answers for a Sentinel says which server is ours: it is verified as the servers are,
        # and has a password of its own.
        login = {"username": options.sentinel_username, "password": options.sentinel_password}
        sentinel = Sentinel(
            target.nodes,
            sentinel_kwargs={
                "socket_timeout": options.connect_timeout_s,
                "socket_connect_timeout": options.connect_timeout_s,
                **{key: value for key, value in login.items() if value is not None},
                **tls,
            },
        )
        return SentinelConnectionPool(target.service, sentinel, **keywords, **tls)
    if target.kind == "standalone":
        host, port = target.nodes[0]
        keywords |= {"host": host, "port": port}
        keywords["connection_class"] = SSLConnection if target.tls else Connection
        if target.tls:
            keywords |= _tls(options)
    # Callers beyond the limit wait for a connection; redis-py's other pool fails them.
    wait_s = options.connect_timeout_s + (options.socket_timeout_s or 0)
    return BlockingConnectionPool(
        max_connections=options.max_connections, timeout=wait_s, **keywords
    )


@asynccontextmanager
async def open_pool(
    url: str,
    options: PoolOptions,
    *,
    name: str,
    client_class: Callable[..., Any] = Redis,
    **client_options: Any,
) -> AsyncIterator[Any]:
    """
    `build_client`, with the embedded server's life and the connections' end taken care of.

    Does not connect: the server may come later (`wait_until_ready`).
    """
    is_embedded = parse_url(url).kind == "embedded"
    real_url = embedded.acquire(url) if is_embedded else url
    try:
        client = build_client(
            real_url, options, name=name, client_class=client_class, **client_options
        )
        try:
            yield client
        finally:
            await close_client(client)
    finally:
        if is_embedded:
            embedded.release(url)


def sibling(client: Any, *, name: str, socket_timeout_s: float | None = None) -> Redis:
    """
    A client of the same server with connections of its own, for another event loop.

    Takes any client over a connection pool (this module's, or arq's); a cluster has none.
    """
    pool = client.connection_pool
    keywords = {**pool.connection_kwargs, "client_name": name}
    # Nothing may wait for ever on a server that hangs.
    keywords["socket_timeout"] = socket_timeout_s or keywords.get("socket_timeout") or 5.0
    keywords["socket_connect_timeout"] = keywords.get("socket_connect_timeout") or 2.0
    if not isinstance(pool, SentinelConnectionPool):
        return Redis(
            connection_pool=ConnectionPool(connection_class=pool.connection_class, **keywords)
        )
    keywords.pop("connection_pool", None)
    nodes = [s.connection_pool.connection_kwargs for s in pool.sentinel_manager.sentinels]
    sentinel = Sentinel(
        [(node["host"], node["port"]) for node in nodes],
        sentinel_kwargs=dict(pool.sentinel_manager.sentinel_kwargs),
    )
    # The pool chooses its class by `ssl`; the original has that choice in place already.
    tls = issubclass(pool.connection_class, SSLConnection)
    return Redis(
        connection_pool=SentinelConnectionPool(
            pool.service_name, sentinel, **keywords, **({"ssl": True} if tls else {})
        )
    )


def node_pool(client: Any, host: str, port: int) -> ConnectionPool:
    """Connections to one node of a cluster, made as the cluster's client makes its own."""
    own = {"connection_class", "parser_class", "response_callbacks", "event_dispatcher"}
    keywords = {k: v for k, v in client.connection_kwargs.items() if k not in own}
    keywords |= {"host": host, "port": port, "max_connections": 2**31}
    return ConnectionPool(
        connection_class=client.connection_kwargs.get("connection_class", Connection), **keywords
    )


async def close_client(client: Any) -> None:
    """Close a client and every connection of its pool."""
    if isinstance(client, RedisCluster):
        await client.aclose()
        return
    await client.aclose(close_connection_pool=True)
    if isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose(close_connection_pool=True)


async def wait_until_ready(client: Any, url: str, *, deadline_s: float | None) -> None:
    """
    Return once the server answers PING; until then try again, 0.1 to 5 s apart with jitter.

    The outage is logged once, and its end once. `deadline_s` None waits for ever.

    Raises:
        RedisUnavailable: not within the deadline.
    """
    backoff = ExponentialWithJitterBackoff(_READY_CAP_S, _READY_BASE_S)
    loop = asyncio.get_running_loop()
    start, failures = loop.time(), 0
    while True:
        try:
            await client.ping()
        except OUTAGE as exc:
            failures += 1
            reason = explain(exc)
            if deadline_s is not None and loop.time() - start >= deadline_s:
                raise RedisUnavailable(redacted(url), reason) from None
            if failures == 1:
                log.warning("redis.unreachable", url=redacted(url), error=reason, retrying=True)
            await asyncio.sleep(backoff.compute(failures))
        else:
            if failures:
                log.info("redis.reached", url=redacted(url), after_s=round(loop.time() - start, 1))
            return


def explain(exc: BaseException) -> str:
    """An outage in a few words: redis-py wraps the cause, and timeouts have no text."""
    text = str(exc) or type(exc).__name__
    return text if len(text) <= 200 else text[:200] + "..."
