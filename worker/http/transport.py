"""
An HTTP transport that connects only to addresses which the egress policy allows.

It resolves a name once, checks every address, and connects to a checked address
while Host and SNI keep the name. Two places check, on purpose: the resolver, so
that a refusal comes before a connection is opened, and the socket factory, which
no spelling of a host can bypass. A kept-alive connection was checked when it was
opened.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from contextvars import ContextVar, Token
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from worker.errors import TargetForbidden
from worker.http.policy import EgressPolicy
from worker.http.resolver import (
    GuardedResolver,
    Lookup,
    SystemLookup,
    check_address,
    is_address,
)
from worker.http.response import (
    MAX_HEADER_BYTES,
    BoundedResponse,
    NotingConnector,
    NotingRequest,
    StatusLine,
    noted,
)
from worker.http.urls import read_url

# Checked URLs to cache: few endpoints get most webhooks.
_MOST_CHECKED_URLS = 1024

# The host for which the current task opens a connection.
_host: ContextVar[str] = ContextVar("egress_host", default="")


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
            # The session has its own; without this, httpx would read the system's store.
            verify=self._tls,
        )
        # The check of a URL's text can be cached; its name is resolved each time.
        self._checked_url = lru_cache(maxsize=_MOST_CHECKED_URLS)(self._check_webhook_url)

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, status_line: StatusLine
    ) -> aiohttp.ClientResponse:
        """
        POST once, without the cost of httpx's objects; the caller closes the response.

        `status_line` has the status as soon as it is read, also when this raises.

        Raises:
            TargetForbidden, BadURL, aiohttp.ClientError, OSError.
        """
        target = self._checked_url(url)
        token = await self._enter(target)
        noting = noted.set(status_line)
        try:
            return await self._session().post(
                target, data=body, headers=headers, allow_redirects=False, proxy=self._proxy
            )
        finally:
            noted.reset(noting)
            _host.reset(token)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        token = await self._enter(self._check_url(request.url))
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
            # With a proxy the only connections go to the proxy, which the operator chose.
            through_proxy = self._proxy is not None
            connector = NotingConnector(
                resolver=None if through_proxy else self._resolver,
                socket_factory=None if through_proxy else self._socket,
                use_dns_cache=False,
                limit=self._max_connections,
                ssl=self._tls,
            )
            self._client = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                request_class=NotingRequest,
                response_class=BoundedResponse,
                max_field_size=MAX_HEADER_BYTES,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                trust_env=False,
            )
        return self._client

    def _socket(self, info: Any) -> socket.socket:
        family, kind, proto, _, address = info
        check_address(self._policy, _host.get(), str(address[0]))
        return socket.socket(family=family, type=kind, proto=proto)

    def _check_webhook_url(self, url: str) -> URL:
        """Check the URL and return it so that aiohttp sends exactly its path and query."""
        found = read_url(url)
        # All of the request line's target as the path: yarl would drop an empty query.
        target = URL.build(
            scheme=found.scheme, authority=found.authority, path=found.target, encoded=True
        )
        return self._check(target)

    def _check_url(self, url: httpx.URL) -> URL:
        return self._check(URL(str(url)))

    def _check(self, target: URL) -> URL:
        """Check port and literal address of a URL as aiohttp sees it."""
        host = target.raw_host or ""
        reason = self._policy.port_refusal(target.port or 0)
        if reason is not None:
            raise TargetForbidden(host, reason)
        if is_address(host):
            # aiohttp does not call its resolver for literal addresses.
            check_address(self._policy, host, host)
        return target

    async def _enter(self, target: URL) -> Token[str]:
        host = target.raw_host or ""
        if self._proxy is not None and not is_address(host):
            # The proxy resolves the name itself; forbidden names must not reach it.
            await self._resolver.resolve(host, target.port or 0)
        return _host.set(host)


def tls_context(
    *, ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """
    Build a TLS context that verifies with the system's authorities, or those of a PEM file.

    `cert_file` and `key_file` are the PEM client certificate for receivers that require one.

    Raises:
        OSError, ssl.SSLError: a file is missing or invalid.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context
