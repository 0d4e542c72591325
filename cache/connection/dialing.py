"""
Takes a connection from a redis-py pool, for exclusive use, and gives it back.

redis-py does the connecting: TLS, login, Sentinel. After that it only knows how to
close the connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cache.connection.incarnation import Incarnation
from cache.connection.pool import OUTAGE
from cache.connection.protocol import Away
from cache.connection.refusals import explain


@dataclass(frozen=True, slots=True)
class Dialed:
    """An open connection: redis-py's object, its transport, and which run of the server answered."""

    connection: Any
    transport: asyncio.Transport
    incarnation: Incarnation


async def dial(pool: Any) -> Dialed:
    """
    Connect, and ask the server for its run.

    Raises:
        Away: refused, or not within the pool's timeouts.
    """
    connection = None
    try:
        connection = await pool.get_connection()
        await connection.send_command("INFO", "server")
        await connection.send_command("INFO", "replication")
        server = await connection.read_response(disable_decoding=True)
        replication = await connection.read_response(disable_decoding=True)
    except OUTAGE as exc:
        if connection is not None:
            await give_back(pool, connection)
        raise Away(explain(exc)) from None
    except asyncio.CancelledError:
        if connection is not None:
            await give_back(pool, connection)
        raise
    transport = connection._writer.transport
    return Dialed(connection, transport, Incarnation(server, replication))


async def give_back(pool: Any, connection: Any) -> None:
    """Close a connection and free its slot in the pool."""
    try:
        with suppress(*OUTAGE):
            await connection.disconnect(nowait=True)
    finally:
        await pool.release(connection)
