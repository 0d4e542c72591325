"""
Makes the scripts of a client share one connection.

redis-py takes a connection from its pool for every call and reads every reply
separately. A service that runs thousands of scripts a second spends most of its
time there. `SharedScripts` sends scripts over one `MultiplexedConnection` instead.
All other commands, blocking ones among them, use redis-py's pool as before.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.backoff import ExponentialWithJitterBackoff

from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.protocol import Away, Ended

_RETRIES = 3
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.02, 0.5
_TIMEOUT_S = 5.0


class SharedScripts:
    """
    A mixin for client classes with a connection pool: `class Client(SharedScripts, Redis)`.

    A script is sent again if its connection ended or stayed silent, so every script must be
    idempotent by its ids.
    """

    # The connection of the scripts, and that of WAIT (worker/queue/confirmation.py);
    # pool.build_client adds them to the callers' limit.
    reserved_connections = 2
    connection_pool: Any
    _connection: MultiplexedConnection | None = None

    @property
    def run_id(self) -> bytes:
        """The server's process that answered the last script; empty before the first."""
        return self._connection.reign[0] if self._connection is not None else b""

    async def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        """
        Run a script by its digest, as redis-py does.

        Raises:
            Away: the server was not reached, or stayed silent. A redis ConnectionError.
            ResponseError: the server refused the script, or it failed.
        """
        return await self._send("EVALSHA", sha, numkeys, *keys_and_args)

    async def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """Run a script by its text. Raises as `evalsha`."""
        return await self._send("EVAL", script, numkeys, *keys_and_args)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
        await super().aclose(close_connection_pool)  # type: ignore[misc]

    async def _send(self, *args: Any) -> Any:
        if self._connection is None:
            limit = self.connection_pool.connection_kwargs.get("socket_timeout")
            self._connection = MultiplexedConnection(
                self, timeout_s=limit or _TIMEOUT_S, eager=True
            )
        connection, failures = self._connection, 0
        while True:
            was_connected = connection.is_connected
            try:
                return await connection.execute(*args)
            except Away as exc:
                failures += 1
                # A firewall that dropped an idle connection stays silent, so try one new one.
                most = _RETRIES if isinstance(exc, Ended) else int(was_connected)
                if failures > most:
                    raise
            backoff = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S)
            await asyncio.sleep(backoff.compute(failures))


class ScriptRedis(SharedScripts, Redis):  # type: ignore[misc]
    """redis-py's client, with its scripts on one connection."""
