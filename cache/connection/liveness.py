"""
Whether a server is known to have ended: then nobody reads from it any more.

A refused connection alone does not tell: it may come from a proxy, or from a
firewall between. On this machine, where the server sees the very end of the
connection that we hold, nothing is between.
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
    Where to knock, given the server's CLIENT INFO of a connection: a path, or host and port.

    None when the server is elsewhere or something stands between.
    """
    peer: Any = transport.get_extra_info("peername")
    own: Any = transport.get_extra_info("sockname")
    found = _ADDR.search(client_info)
    seen = found[1].decode(errors="replace") if found else ""
    if isinstance(peer, str):
        return peer if seen in {f"{peer}:0", f"[{peer}:0]:0"} else None
    if not peer or not own or not ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback:
        return None
    host = f"[{own[0]}]" if ":" in own[0] else own[0]
    return (peer[0], peer[1]) if seen == f"{host}:{own[1]}" else None


async def has_ended(place: Vicinity) -> bool:
    """Whether nobody listens there."""
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
