"""
Resolves names to addresses that the egress policy allows.

It also tells a receiver's bad name from an outage of our own name server.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from worker.errors import TargetForbidden
from worker.http.policy import EgressPolicy

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
Lookup = Callable[[str, int], Awaitable[list[AddressInfo]]]

# Each lookup at a slow name server blocks a thread. With fewer threads, one receiver's
# slow names would delay all others.
_MOST_LOOKUPS = 64
# A lookup that failed is the receiver's fault only while other names resolve.
_RESOLVED_RECENTLY_S = 30.0


class ResolverUnavailable(OSError):
    """No name resolves at present: our own name server is unreachable, not the receiver's."""


class SystemLookup:
    """Runs getaddrinfo in its own thread pool, so that slow names delay no other work."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MOST_LOOKUPS, thread_name_prefix="egress-dns")

    async def __call__(self, host: str, port: int) -> list[AddressInfo]:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, _getaddrinfo, host, port
        )

    def close(self) -> None:
        # Do not wait for threads that a dead name server blocks.
        self._threads.shutdown(wait=False, cancel_futures=True)


def _getaddrinfo(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class GuardedResolver(AbstractResolver):
    """
    Returns allowed addresses only; a name with one forbidden address is refused as a whole.

    Raises:
        TargetForbidden: one of the addresses is forbidden.
        ResolverUnavailable: the lookup failed, and no other name has resolved lately.
        OSError: the name does not exist, or only its own lookup failed.
    """

    def __init__(self, policy: EgressPolicy, lookup: Lookup) -> None:
        self._policy = policy
        self._lookup = lookup
        # The last two names that resolved, with their times.
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
        since = time.monotonic() - _RESOLVED_RECENTLY_S
        return any(at >= since for name, at in self._resolved.items() if name != host)


def check_address(policy: EgressPolicy, host: str, address: str) -> None:
    """Raise TargetForbidden unless the policy allows the address."""
    reason = policy.refusal(address, host)
    if reason is not None:
        # Do not name the address: the message may reach whoever chose the host.
        raise TargetForbidden(host, reason)


def is_address(host: str) -> bool:
    """Whether `host` is an IP address in any spelling of the C library (`127.1`, `0x7f.1`)."""
    try:
        ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        try:
            socket.inet_aton(host)
        except OSError:
            return False
    return True
