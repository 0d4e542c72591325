"""
HTTP out of the workers: httpx's API over aiohttp's transport, behind the egress guard.

Names are resolved once, every answer is judged, and the connection goes to a
judged address while Host and SNI keep the name: what was checked is what is
connected to. Redirects are not followed, proxies and credentials of the
environment are not read, bodies are not decompressed.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from ipaddress import ip_address

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport

from worker.errors import TargetForbidden
from worker.policy.egress import EgressPolicy


class GuardedResolver(AbstractResolver):
    """Resolves with the system's resolver and hands back judged addresses only."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        for entry in found:
            judge(self._policy, host, str(entry[4][0]))
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        return None


def judge(policy: EgressPolicy, host: str, address: str) -> None:
    """Raise TargetForbidden unless the policy lets us connect to the address."""
    reason = policy.refusal(address)
    if reason is not None:
        # The address is not named: the message may reach whoever chose the host.
        raise TargetForbidden(host, reason)


class GuardedTransport(httpx.AsyncBaseTransport):
    """Refuses forbidden addresses before a connection is opened."""

    def __init__(self, policy: EgressPolicy, *, max_connections: int) -> None:
        self._policy = policy
        self._max_connections = max_connections
        self._inner = AiohttpTransport(client=self._session)

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(self._policy),
            use_dns_cache=False,
            limit=self._max_connections,
            ssl=ssl.create_default_context(),
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        # aiohttp does not ask its resolver about addresses, so they are judged here.
        if is_address(host):
            judge(self._policy, host, host)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_address(host: str) -> bool:
    """An IP address in any spelling that the C library would connect to (`127.1`, `0x7f.1`)."""
    try:
        ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        try:
            socket.inet_aton(host)
        except OSError:
            return False
    return True


def build_http_client(policy: EgressPolicy, *, max_connections: int) -> httpx.AsyncClient:
    """One client for a worker's life; give every request its own deadline with asyncio.timeout."""
    return httpx.AsyncClient(
        transport=GuardedTransport(policy, max_connections=max_connections),
        timeout=httpx.Timeout(None),
        follow_redirects=False,
        trust_env=False,
        headers={"accept-encoding": "identity", "user-agent": "letta-redis"},
    )


async def post_webhook(
    client: httpx.AsyncClient,
    url: str,
    *,
    headers: dict[str, str],
    body: bytes,
    timeout_s: float,
    keep_bytes: int,
) -> tuple[int, bytes, float]:
    """
    POST once; return status, the response's first `keep_bytes` bytes, and milliseconds.

    The deadline covers the whole attempt. The response is read no further than
    is kept, so an endless one costs nothing.

    Raises:
        TargetForbidden, httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError.
    """
    start = time.perf_counter()
    async with asyncio.timeout(timeout_s):
        async with client.stream("POST", url, headers=headers, content=body) as response:
            kept = await _first_bytes(response, keep_bytes)
    return response.status_code, kept, (time.perf_counter() - start) * 1000


async def _first_bytes(response: httpx.Response, limit: int) -> bytes:
    kept = bytearray()
    async for chunk in response.aiter_raw():
        kept += chunk
        if len(kept) >= limit:
            break
    return bytes(kept[:limit])


# Most particular first. aiohttp's own classes are looked for behind httpx's: the
# transport reports every failed connection as a timeout.
_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (TargetForbidden, "target_forbidden"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ServerTimeoutError, "timeout"),
    (aiohttp.ClientConnectorError, "connect"),
    (aiohttp.ServerDisconnectedError, "disconnected"),
    (aiohttp.ClientPayloadError, "read"),
    (aiohttp.ClientResponseError, "protocol"),
    (aiohttp.ClientOSError, "connection"),
    (httpx.InvalidURL, "invalid_url"),
    (TimeoutError, "timeout"),
    (httpx.TimeoutException, "timeout"),
    (OSError, "connection"),
)


def describe(exc: BaseException) -> str:
    """An error class a receiver's operator understands, without addresses or secrets."""
    chain = [exc, *([exc.__cause__] if exc.__cause__ is not None else [])]
    for kind, name in _ERRORS:
        if any(isinstance(link, kind) for link in chain):
            return name
    return type(exc).__name__
