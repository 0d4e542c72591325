"""
Parses Redis URLs, and hides their passwords.

Forms: redis://, rediss:// (TLS), unix://, redis+sentinel://host:port,.../service[/db],
redis+cluster://host:port,... (rediss+sentinel:// and rediss+cluster:// with TLS),
embedded://[/directory] and embedded+cluster://.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from cache.errors import UnsupportedRedisURL


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
    service: str = ""  # name of the master, for Sentinel


# Linux's limit, without the ending zero.
_MOST_SOCKET_PATH = 107

# Options of redis-py's URLs, and our settings of the same meaning.
_OPTIONS = {
    "health_check_interval": "LETTA_REDIS_HEALTH_CHECK_INTERVAL_S",
    "max_connections": "LETTA_REDIS_MAX_CONNECTIONS",
    "password": "LETTA_REDIS_PASSWORD",
    "socket_connect_timeout": "LETTA_REDIS_CONNECT_TIMEOUT_S",
    "socket_timeout": "LETTA_REDIS_SOCKET_TIMEOUT_S",
    "ssl_ca_certs": "LETTA_REDIS_CA_FILE",
    "ssl_certfile": "LETTA_REDIS_CERT_FILE",
    "ssl_keyfile": "LETTA_REDIS_KEY_FILE",
    "username": "LETTA_REDIS_USERNAME",
}
# Components of a URL that may be shown unchanged. Everything else becomes `***`.
_SHOWN_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}:")
_SHOWN_HOSTS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]*)(:\d{1,5})?(,|$)")
_SHOWN_PATH = re.compile(r"[A-Za-z0-9_./~ -]*")
_SHOWN_QUERY = re.compile(r"(\?db=\d{1,5})?")


def redacted(url: str) -> str:
    """The URL for logs and errors, without anything that might be a password, even if malformed."""
    scheme, credentials, rest = _split(url)
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


def _split(url: str) -> tuple[str, str, str]:
    """Scheme, `user:password` and the rest. A password may contain `@`, `#`, `?` and `/`."""
    scheme, _, rest = url.partition("://")
    if rest.startswith("/"):
        return scheme, "", rest
    # The path of a socket may contain an `@` too.
    at = rest.rfind("@/" if scheme == "unix" else "@")
    return scheme, rest[: max(at, 0)], rest[at + 1 :]


def parse_url(url: str) -> Target:
    """
    Parse a Redis URL.

    Raises:
        UnsupportedRedisURL: the scheme is unknown, or the port or database number is bad, or the query has
            options that change nothing.
    """
    scheme, credentials, rest = _split(url)
    scheme = scheme.lower()
    tls = scheme.startswith("rediss")
    username, _, password = credentials.partition(":")
    login = (unquote(username) or None, unquote(password) or None)
    try:
        parts = urlsplit(f"//{rest}")
        query, hosts = dict(parse_qsl(parts.query, keep_blank_values=True)), parts.netloc
        if scheme == "embedded" or url == "embedded+cluster://":
            return Target("embedded")
        _require_options(url, query, {"db"} if scheme in {"redis", "rediss", "unix"} else set())
        if scheme == "unix":
            path = _socket_path(url, unquote(parts.path))
            return Target("unix", (), int(query.get("db", 0)), *login, path=path)
        default_port = 26379 if scheme.endswith("+sentinel") else 6379
        nodes = tuple(_host_port(item, default_port) for item in hosts.split(","))
        steps = [p for p in parts.path.split("/") if p]
        if scheme in {"redis", "rediss"} and len(nodes) == 1:
            db = int(query.get("db", steps[0] if steps else 0))
            return Target("standalone", nodes, db, *login, tls=tls)
        if scheme in {"redis+sentinel", "rediss+sentinel"} and steps:
            db = int(steps[1]) if len(steps) > 1 else 0
            return Target("sentinel", nodes, db, *login, tls=tls, service=steps[0])
        if scheme in {"redis+cluster", "rediss+cluster"}:
            return Target("cluster", nodes, 0, *login, tls=tls)
    except UnsupportedRedisURL:
        raise
    except ValueError:
        # Without the cause: its text repeats the value, which may be a password.
        raise UnsupportedRedisURL(
            f"{redacted(url)}: cannot parse its host, port or database number; use a form that "
            "docs/settings.md lists"
        ) from None
    raise UnsupportedRedisURL(
        f"{redacted(url)}: unknown form of URL; use one that docs/settings.md lists"
    )


def _require_options(url: str, query: Mapping[str, str], known: Set[str]) -> None:
    """Refuse what redis-py would read from a URL's query, and nothing here does."""
    others = query.keys() - known
    if others:
        # Another name is not shown: it may be a password.
        named = [
            f"; set {_OPTIONS[name]} instead of {name}" for name in sorted(others & {*_OPTIONS})
        ]
        kept = "has no options" if not known else "has no options but db"
        raise UnsupportedRedisURL(f"{redacted(url)}: this form {kept}; remove them{''.join(named)}")


def _socket_path(url: str, path: str) -> str:
    if len(path.encode()) > _MOST_SOCKET_PATH:
        raise UnsupportedRedisURL(
            f"{redacted(url)}: a socket's path has at most {_MOST_SOCKET_PATH} bytes; "
            "make a link to it with a shorter path"
        )
    return path


def _host_port(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit("//" + text)
    return parts.hostname or "localhost", parts.port or default
