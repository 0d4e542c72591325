"""
The guarded way out: names are resolved once, every answer is judged, and the
connection goes to a judged address while Host and SNI keep the name.

Two places judge, on purpose: the resolver, so that a refusal comes before
anything is opened, and the making of the socket, which no spelling of a host can
go around. A connection that is kept alive was judged when it was opened.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, Token
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import HttpProcessingError
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from worker.errors import TargetForbidden
from worker.http.policy import EgressPolicy

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
Lookup = Callable[[str, int], Awaitable[list[AddressInfo]]]

# A slow name server blocks a thread each; more of them than a worker's attempts are
# never needed, fewer would let one receiver's names hold up all others.
_MOST_LOOKUPS = 64
# A lookup that failed is the receiver's fault only while other names resolve.
_RESOLVER_IS_WELL_S = 30.0

# URLs whose spelling has been judged and is remembered: few endpoints get most webhooks.
_MOST_VETTED = 1024
# Answers of 1xx before the real one: a 100 and some early hints are usual.
_MOST_INFORMATIONAL = 20

# What a connection is being opened for, in the task that opens it.
_host: ContextVar[str] = ContextVar("egress_host", default="")


class ResolverUnavailable(OSError):
    """No name resolves at present: our own name server is away, not the receiver's."""


class SystemLookup:
    """getaddrinfo in threads of its own, so that slow names delay nobody else's work."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MOST_LOOKUPS, thread_name_prefix="egress-dns")

    async def __call__(self, host: str, port: int) -> list[AddressInfo]:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, _getaddrinfo, host, port
        )

    def close(self) -> None:
        # Threads that wait for a dead name server are left to end by themselves.
        self._threads.shutdown(wait=False, cancel_futures=True)


def _getaddrinfo(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class GuardedResolver(AbstractResolver):
    """
    Hands back judged addresses only; a name with one forbidden address is refused whole.

    Raises:
        TargetForbidden: an answer is forbidden.
        ResolverUnavailable: no answer, nor for any other name of late.
        OSError: no such name, or no answer for it alone.
    """

    def __init__(self, policy: EgressPolicy, lookup: Lookup) -> None:
        self._policy = policy
        self._lookup = lookup
        # The last name that resolved, and the last other one, with their times.
        self._resolved: dict[str, float] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await self._lookup(host, port)
        except socket.gaierror as exc:
            if exc.errno == socket.EAI_AGAIN and not self._others_resolve(host):
                raise ResolverUnavailable(errno.EAGAIN, "no name server answers") from exc
            raise
        self._note(host)
        for entry in found:
            check_address(self._policy, host, str(entry[4][0]))
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
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        if isinstance(self._lookup, SystemLookup):
            self._lookup.close()

    def _note(self, host: str) -> None:
        self._resolved.pop(host, None)
        self._resolved[host] = time.monotonic()
        while len(self._resolved) > 2:
            del self._resolved[next(iter(self._resolved))]

    def _others_resolve(self, host: str) -> bool:
        since = time.monotonic() - _RESOLVER_IS_WELL_S
        return any(at >= since for name, at in self._resolved.items() if name != host)


def check_address(policy: EgressPolicy, host: str, address: str) -> None:
    """Raise TargetForbidden unless the policy lets us connect to the address."""
    reason = policy.refusal(address, host)
    if reason is not None:
        # The address is not named: the message may reach whoever chose the host.
        raise TargetForbidden(host, reason)


class BoundedResponse(aiohttp.ClientResponse):
    """An answer that comes to the point: a flood of 1xx would keep the event loop busy."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        protocol, heard = connection.protocol, 0
        read = protocol.read

        async def counted() -> Any:
            nonlocal heard
            heard += 1
            if heard > _MOST_INFORMATIONAL:
                raise HttpProcessingError(message="too many informational answers")
            return await read()

        protocol.read = counted
        try:
            return await super().start(connection)
        finally:
            del protocol.read


class GuardedTransport(httpx.AsyncBaseTransport):
    """Refuses forbidden ports and addresses before a connection is opened."""

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        max_connections: int,
        tls: ssl.SSLContext | None = None,
        lookup: Lookup | None = None,
        proxy: str | None = None,
    ) -> None:
        self._policy = policy
        self._max_connections = max_connections
        self._tls = tls or ssl.create_default_context()
        self._resolver = GuardedResolver(policy, lookup or SystemLookup())
        self._proxy = URL(proxy) if proxy else None
        self._client: aiohttp.ClientSession | None = None
        self._inner = AiohttpTransport(
            client=self._session,
            proxy=httpx.Proxy(proxy) if proxy else None,
            # Unused, as the session brings its own; this spares reading the system's store.
            verify=self._tls,
        )
        # What a URL's text says never changes; what its name resolves to is asked each time.
        self._vetted = lru_cache(maxsize=_MOST_VETTED)(self._vet)

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes
    ) -> aiohttp.ClientResponse:
        """
        POST once, without the cost of httpx's requests; the caller closes the answer.

        Raises:
            TargetForbidden, httpx.InvalidURL, aiohttp.ClientError, OSError.
        """
        target = self._vetted(url)
        token = await self._enter(target)
        try:
            return await self._session().post(
                target, data=body, headers=headers, allow_redirects=False, proxy=self._proxy
            )
        finally:
            _host.reset(token)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        token = await self._enter(self._vet(request.url))
        try:
            return await self._inner.handle_async_request(request)
        finally:
            _host.reset(token)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()
        await self._resolver.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            # Through a proxy only the proxy is connected to, and the operator chose that.
            through_proxy = self._proxy is not None
            connector = aiohttp.TCPConnector(
                resolver=None if through_proxy else self._resolver,
                socket_factory=None if through_proxy else self._socket,
                use_dns_cache=False,
                limit=self._max_connections,
                ssl=self._tls,
            )
            self._client = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                response_class=BoundedResponse,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                trust_env=False,
            )
        return self._client

    def _socket(self, info: Any) -> socket.socket:
        family, kind, proto, _, address = info
        check_address(self._policy, _host.get(), str(address[0]))
        return socket.socket(family=family, type=kind, proto=proto)

    def _vet(self, url: httpx.URL | str) -> URL:
        """The URL as aiohttp reads it, which on some spellings is not as httpx does."""
        target = URL(str(httpx.URL(url)))
        host = target.raw_host or ""
        reason = self._policy.port_refusal(target.port or 0)
        if reason is not None:
            raise TargetForbidden(host, reason)
        if is_address(host):
            # aiohttp does not ask its resolver about addresses.
            check_address(self._policy, host, host)
        return target

    async def _enter(self, target: URL) -> Token[str]:
        host = target.raw_host or ""
        if self._proxy is not None and not is_address(host):
            # The proxy resolves it again; it is told nothing of names that are not allowed.
            await self._resolver.resolve(host, target.port or 0)
        return _host.set(host)


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


def tls_context(
    *, ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """
    Verifying TLS with the system's authorities, or with those of a PEM file instead.

    `cert_file` and `key_file` are the PEM client certificate for receivers that ask for one.

    Raises:
        OSError, ssl.SSLError: a file is missing or is not what it should be.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context
