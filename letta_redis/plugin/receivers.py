"""
Warns of receivers of callbacks that the workers will refuse.

The Letta server posts to any address. The workers post to public addresses and to
those that their settings allow, so a receiver on a private network needs a setting.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from cache.logs import get_logger
from letta_redis.plugin import rows
from worker.http.policy import EgressPolicy, parse_hosts, parse_networks, parse_ports
from worker.http.urls import BadURL, read_url

if TYPE_CHECKING:
    from settings import Settings

log = get_logger("letta_redis")

_MOST_HOSTS = 50
_LOOKUP_S = 5.0


async def warn_of_refused(settings: Settings) -> list[str]:
    """
    Log each recent receiver of callbacks or steps that workers refuse. Return their hosts.

    Uses this process's settings; those of the workers may allow more.
    """
    urls = await rows.recent_urls()
    step_url = os.environ.get("STEP_COMPLETE_WEBHOOK")
    if step_url:
        urls.add(step_url)
    policy = EgressPolicy(
        allowed=parse_networks(settings.webhook_allow_cidrs),
        hosts=parse_hosts(settings.webhook_allow_hosts),
        ports=parse_ports(settings.webhook_ports),
    )
    refused = []
    for host, port in sorted(_servers(urls))[:_MOST_HOSTS]:
        reason = policy.port_refusal(port) or await _refusal(policy, host)
        if reason is not None:
            refused.append(host)
            log.warning(
                "letta.callback_host_refused",
                host=host,
                port=port,
                reason=reason,
                remedy="on the workers, allow it with LETTA_WEBHOOK_ALLOW_CIDRS, "
                "LETTA_WEBHOOK_ALLOW_HOSTS or LETTA_WEBHOOK_PORTS",
            )
    return refused


def _servers(urls: Iterable[str]) -> set[tuple[str, int]]:
    """The host and port of each URL that is valid for a webhook."""
    found = set()
    for url in urls:
        with suppress(BadURL):
            read = read_url(url)
            found.add((read.host, read.port))
    return found


async def _refusal(policy: EgressPolicy, host: str) -> str | None:
    """Why the workers refuse a host; None if they accept it, or if its name cannot be resolved."""
    try:
        async with asyncio.timeout(_LOOKUP_S):
            found = await asyncio.get_running_loop().getaddrinfo(
                host, None, type=socket.SOCK_STREAM
            )
    except (OSError, TimeoutError, UnicodeError):
        return None
    reasons = [policy.refusal(str(address[0]), host) for *_, address in found]
    return next((reason for reason in reasons if reason is not None), None)
