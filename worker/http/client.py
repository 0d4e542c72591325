"""
The workers' HTTP client: httpx's API over aiohttp's transport, behind the egress guard.

It follows no redirects, reads no proxies or credentials from the environment, and
does not decompress bodies. One deadline covers a whole attempt, and a response is
read up to a size limit, so both bound what a receiver can cost.
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
from worker.http.resolver import ResolverUnavailable, check_address, is_address
from worker.http.response import StatusLine
from worker.http.transport import GuardedTransport
from worker.http.urls import BadURL

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
    """httpx's client, with direct access to its transport."""

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
    Build the one client of a worker. It has no timeout: wrap each request in asyncio.timeout.

    `transport`: the arguments `tls`, `lookup` and `proxy` of `GuardedTransport`.
    """
    return GuardedClient(GuardedTransport(policy, max_connections=max_connections, **transport))


@dataclass(frozen=True, slots=True)
class HTTPReply:
    """
    How a POST ended. `status` is set as soon as a status line was read; `error` then says
    what went wrong after it. `error` is "" when the whole response was read. `body` is the
    beginning of the response. `internal`: our own side failed, not the receiver.
    `permanent`: the URL itself is forbidden or invalid.
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
    POST once. Errors of the network and the receiver are returned, not raised.

    The deadline covers the whole attempt. At most `max_bytes` of the response are read
    and `keep_bytes` kept; a longer response is the error `response_too_large`.
    """
    start = time.perf_counter()
    kept, retry_after, error, exc = bytearray(), None, "", None
    response, status_line = None, StatusLine()
    try:
        async with asyncio.timeout(timeout_s):
            # Bypass httpx: building its request and response objects takes as long as
            # all of aiohttp's work, and its cookies, redirects and hooks are not needed.
            response = await client.guarded.post(url, {**_HEADERS, **headers}, body, status_line)
            try:
                retry_after = response.headers.get("retry-after")
                if not await _read(response.content, kept, keep_bytes, max_bytes):
                    error = "response_too_large"
            finally:
                # Closes the connection unless the response was read to its end.
                response.close()
    except Exception as caught:  # noqa: BLE001  (whatever a response makes a library raise)
        exc, error = caught, describe(caught)
    status = status_line.status if response is None else response.status
    # Once a status line was read, neither our side nor the URL is at fault.
    unanswered = exc if status is None else None
    return HTTPReply(
        status=status,
        body=bytes(kept),
        retry_after=retry_after,
        ms=round((time.perf_counter() - start) * 1000, 3),
        error=error,
        internal=unanswered is not None and is_internal(unanswered),
        permanent=isinstance(unanswered, TargetForbidden | BadURL | aiohttp.InvalidURL),
    )


async def _read(content: aiohttp.StreamReader, kept: bytearray, keep: int, most: int) -> bool:
    """Read to the end and keep the first `keep` bytes; False when longer than `most`."""
    size = 0
    while not content.at_eof():
        chunk = await content.readany()
        kept += chunk[: max(0, keep - len(kept))]
        size += len(chunk)
        if size > most:
            return False
    return True


# Most specific class first. aiohttp's classes come before httpx's, because
# httpx-aiohttp reports every failed connection as a timeout.
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
    (BadURL, "invalid_url"),
    (aiohttp.InvalidURL, "invalid_url"),
    (TimeoutError, "timeout"),
    (httpx.TimeoutException, "timeout"),
    (OSError, "connection"),
)
# Errors of this machine. EHOSTUNREACH is not among them: a router reports it for one
# host, the receiver's.
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
    """Name the error for a receiver's operator, without addresses or secrets."""
    causes = _causes(exc)
    for cause in causes:
        if isinstance(cause, ResolverUnavailable):
            return "resolver_unavailable"
        if isinstance(cause, OSError) and cause.errno in _INTERNAL_ERRNOS:
            return _INTERNAL_ERRNOS[cause.errno]
    for kind, name in _ERRORS:
        if any(isinstance(cause, kind) for cause in causes):
            return name
    return type(exc).__name__


def is_internal(exc: BaseException) -> bool:
    """Whether our own side failed: resolver, proxy, route, free port, free file or memory."""
    return describe(exc) in _INTERNAL


def _causes(exc: BaseException) -> list[BaseException]:
    """Return the exception, its chain of `__cause__`, and the OSErrors that aiohttp attaches."""
    causes = [exc]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    attached = [getattr(cause, "os_error", None) for cause in causes]
    return causes + [error for error in attached if isinstance(error, BaseException)]
