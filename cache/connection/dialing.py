"""
Takes a connection from a redis-py pool, for exclusive use, and gives it back.

redis-py does the connecting: TLS, login, Sentinel. After that it only knows how to
close the connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from cache.connection.pool import OUTAGE
from cache.connection.protocol import Away
from cache.connection.refusals import explain


@dataclass(frozen=True, slots=True)
class Dialed:
    """An open connection: redis-py's object, its transport, and which server run answered."""

    connection: Any
    transport: asyncio.Transport
    incarnation: bytes  # 8 bytes, made from the server's run id


async def dial(pool: Any) -> Dialed:
    """
    Connect, and ask the server for its run id.

    Raises:
        Away: refused, or not within the pool's timeouts.
    """
    connection = None
    try:
        connection = await pool.get_connection()
        await connection.send_command("INFO", "server")
        info = await connection.read_response(disable_decoding=True)
    except OUTAGE as exc:
        if connection is not None:
            await give_back(pool, connection)
        raise Away(explain(exc)) from None
    except asyncio.CancelledError:
        if connection is not None:
            await give_back(pool, connection)
        raise
    transport = connection._writer.transport
    return Dialed(connection, transport, _run_id(info))


async def give_back(pool: Any, connection: Any) -> None:
    """Close a connection and free its slot in the pool."""
    try:
        with suppress(*OUTAGE):
            await connection.disconnect(nowait=True)
    finally:
        await pool.release(connection)


def _run_id(info: bytes) -> bytes:
    for line in info.splitlines():
        if line.startswith(b"run_id:"):
            return blake2b(line[7:], digest_size=8).digest()
    return bytes(8)
