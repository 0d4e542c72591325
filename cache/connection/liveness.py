"""
Finds out whether a server has ended, so that nobody can read from it any more.

A refused connection alone proves nothing: a proxy or a firewall may have refused
it. If the server runs on this machine and sees the address that our socket has,
nothing stands between, and a refusal is its own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from typing import Any

Vicinity = str | tuple[str, int] | None
_ADDR = re.compile(rb"(?:^| )addr=(\S+)")
_TIMEOUT_S = 0.1


def vicinity(transport: asyncio.Transport, client_info: bytes) -> Vicinity:
    """
    Address to probe: the path of a unix socket, or host and port.

    `client_info` is the server's reply to CLIENT INFO on the same connection. None when the
    server is on another machine, or when something stands between.
    """
    peer: Any = transport.get_extra_info("peername")
    local: Any = transport.get_extra_info("sockname")
    found = _ADDR.search(client_info)
    seen = found[1].decode(errors="replace") if found else ""
    if isinstance(peer, str):
        return peer if seen in {f"{peer}:0", f"[{peer}:0]:0"} else None
    if not peer or not local or not ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback:
        return None
    host = f"[{local[0]}]" if ":" in local[0] else local[0]
    return (peer[0], peer[1]) if seen == f"{host}:{local[1]}" else None


async def has_ended(place: Vicinity) -> bool:
    """Whether no process listens at an address; False for None."""
    if place is None:
        return False
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            if isinstance(place, str):
                _, writer = await asyncio.open_unix_connection(place)
            else:
                _, writer = await asyncio.open_connection(*place)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False
