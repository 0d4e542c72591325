"""
HTTP out of the workers: httpx's API over aiohttp's transport, behind the egress guard.

Redirects are not followed, proxies and credentials of the environment are not
read, bodies are not decompressed. An attempt has one deadline for all of it, and
an answer is read up to a limit, so that no receiver costs more than both.
"""

from __future__ import annotations

import asyncio
import errno
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx

from worker.errors import TargetForbidden
from worker.http.policy import EgressPolicy
from worker.http.transport import GuardedTransport, ResolverUnavailable, check_address, is_address

__all__ = [
    "HTTPReply",
    "build_http_client",
    "check_address",
    "describe",
    "is_address",
    "post_webhook",
]


_HEADERS = {"accept-encoding": "identity", "user-agent": "letta-redis"}


class GuardedClient(httpx.AsyncClient):
    """httpx's client, whose transport can also be called by itself."""

    def __init__(self, guarded: GuardedTransport) -> None:
        super().__init__(
            transport=guarded,
            timeout=httpx.Timeout(None),
            follow_redirects=False,
            trust_env=False,
            headers=_HEADERS,
        )
        self.guarded = guarded


def build_http_client(
    policy: EgressPolicy, *, max_connections: int, **transport: Any
) -> GuardedClient:
    """
    One client for a worker's life; give every request its own deadline with asyncio.timeout.

    `transport`: `tls`, `lookup` and `proxy` of `worker.http.transport.GuardedTransport`.
    """
    return GuardedClient(GuardedTransport(policy, max_connections=max_connections, **transport))


@dataclass(frozen=True, slots=True)
class HTTPReply:
    """
    How a POST ended. `error` is "" when a whole answer was read; `status` may be
    known beside an error. `body` is its beginning. `internal`: our side failed, the
    receiver has nothing to do with it.
    """

    status: int | None
    body: bytes
    retry_after: str | None
    ms: float
    error: str = ""
    internal: bool = False
    permanent: bool = False


async def post_webhook(
    client: GuardedClient,
    url: str,
    *,
    headers: dict[str, str],
    body: bytes,
    timeout_s: float,
    keep_bytes: int,
    max_bytes: int,
) -> HTTPReply:
    """
    POST once. Never raises for what the network or the receiver does.

    The deadline covers the whole attempt. Of the answer `keep_bytes` are kept and
    `max_bytes` read; a longer one is the error `response_too_large`.
    """
    start = time.perf_counter()
    status, kept, retry_after, error, exc = None, bytearray(), None, "", None
    try:
        async with asyncio.timeout(timeout_s):
            # Past httpx: its cookies, redirects and hooks are not wanted here, and its
            # requests and answers take as long to make as aiohttp takes for all the rest.
            response = await client.guarded.post(url, {**_HEADERS, **headers}, body)
            try:
                status = response.status
                retry_after = response.headers.get("retry-after")
                if not await _read(response.content, kept, keep_bytes, max_bytes):
                    error = "response_too_large"
            finally:
                # Of no effect once it is read to its end.
                response.close()
    except (
        TargetForbidden,
        httpx.HTTPError,
        httpx.InvalidURL,
        aiohttp.ClientError,
        TimeoutError,
        OSError,
        ValueError,
    ) as caught:
        exc, error = caught, describe(caught)
    return HTTPReply(
        status=status,
        body=bytes(kept),
        retry_after=retry_after,
        ms=round((time.perf_counter() - start) * 1000, 3),
        error=error,
        internal=exc is not None and is_internal(exc),
        permanent=isinstance(exc, TargetForbidden | httpx.InvalidURL | aiohttp.InvalidURL),
    )


async def _read(content: aiohttp.StreamReader, kept: bytearray, keep: int, most: int) -> bool:
    """Read to the end, keeping the beginning; False when it is longer than `most`."""
    size = 0
    while not content.at_eof():
        chunk = await content.readany()
        kept += chunk[: max(0, keep - len(kept))]
        size += len(chunk)
        if size > most:
            return False
    return True


# Most particular first. aiohttp's own classes are looked for behind httpx's: the
# transport for httpx reports every failed connection as a timeout.
_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (TargetForbidden, "target_forbidden"),
    (ResolverUnavailable, "resolver_unavailable"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ClientConnectorCertificateError, "tls"),
    (aiohttp.ServerTimeoutError, "timeout"),
    (aiohttp.ClientProxyConnectionError, "proxy"),
    (aiohttp.ClientHttpProxyError, "proxy"),
    (aiohttp.ClientConnectorError, "connect"),
    (aiohttp.ServerDisconnectedError, "disconnected"),
    (aiohttp.ClientPayloadError, "read"),
    (aiohttp.ClientResponseError, "protocol"),
    (aiohttp.ClientOSError, "connection"),
    (httpx.InvalidURL, "invalid_url"),
    (aiohttp.InvalidURL, "invalid_url"),
    (TimeoutError, "timeout"),
    (httpx.TimeoutException, "timeout"),
    (OSError, "connection"),
)
# What this machine lacks. EHOSTUNREACH is not among them: a router says it of one
# host, and that host is the receiver's.
_INTERNAL_ERRNOS = {
    errno.ENETUNREACH: "no_route",
    errno.ENETDOWN: "no_route",
    errno.EADDRNOTAVAIL: "no_free_port",
    errno.EMFILE: "no_free_file",
    errno.ENFILE: "no_free_file",
    errno.ENOBUFS: "no_memory",
    errno.ENOMEM: "no_memory",
}
_INTERNAL = {"resolver_unavailable", "proxy", *_INTERNAL_ERRNOS.values()}


def describe(exc: BaseException) -> str:
    """An error class a receiver's operator understands, without addresses or secrets."""
    chain = list(_chain(exc))
    for link in chain:
        if isinstance(link, ResolverUnavailable):
            return "resolver_unavailable"
        if isinstance(link, OSError) and link.errno in _INTERNAL_ERRNOS:
            return _INTERNAL_ERRNOS[link.errno]
    for kind, name in _ERRORS:
        if any(isinstance(link, kind) for link in chain):
            return name
    return type(exc).__name__


def is_internal(exc: BaseException) -> bool:
    """Whether our own side failed: no name server, no route, no free port or file."""
    return describe(exc) in _INTERNAL


def _chain(exc: BaseException) -> list[BaseException]:
    links = [exc]
    while (cause := links[-1].__cause__) is not None and cause not in links:
        links.append(cause)
    # aiohttp keeps what the system said beside its own errors.
    inner = [getattr(link, "os_error", None) for link in links]
    return links + [link for link in inner if isinstance(link, BaseException)]
