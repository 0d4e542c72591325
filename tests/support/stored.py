"""Reads all that a server stores, for tests of what must not be there."""

from __future__ import annotations

from typing import Any


async def everything_stored(client: Any, prefix: str = "") -> str:
    """Return the content of all keys with this prefix as text."""
    found: list[Any] = []
    async for key in client.scan_iter(f"{prefix}*", count=1000):
        kind = (await client.type(key)).decode()
        if kind == "none":
            # It ended since it was listed. A queue may be there again by now, so no type fits.
            continue
        read: Any = {
            "string": client.get,
            "hash": client.hgetall,
            "list": lambda k: client.lrange(k, 0, -1),
            "set": client.smembers,
            "zset": lambda k: client.zrange(k, 0, -1),
            "stream": client.xrange,
        }[kind]
        found.append((key, await read(key)))
    assert found
    return repr(found)
