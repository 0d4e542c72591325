"""
Clients whose scripts share one connection.

redis-py takes a connection from its pool for every call and reads each reply
on its own; a service that runs thousands of scripts a second spends most of
its time there. `SharedScripts` sends them over one pipelined `MultiplexedConnection` instead:
what comes while others wait for replies leaves in one write a tick of the event
loop. Every other command goes redis-py's way, and so does whatever blocks.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.backoff import ExponentialWithJitterBackoff

from cache.connection.multiplexed import Away, Ended, MultiplexedConnection

_RETRIES = 3
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.02, 0.5
_TIMEOUT_S = 5.0


class SharedScripts:
    """
    Mixed into a client class over a connection pool: `class Client(SharedScripts, Redis)`.

    A script whose connection ended or fell silent under it is sent again, so
    each must be idempotent by the ids it is given.
    """

    # One more than the pool has for callers (pool.build_client).
    own_connections = 1
    connection_pool: Any
    _connection: MultiplexedConnection | None = None

    async def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Any:
        """
        As redis-py's.

        Raises:
            Away: a redis ConnectionError: not reached, or silent.
            ResponseError: the server refused it.
        """
        return await self._send("EVALSHA", sha, numkeys, *keys_and_args)

    async def eval(self, script: str, numkeys: int, *keys_and_args: Any) -> Any:
        """As `evalsha`."""
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
                # A network that forgot an idle connection stays silent: worth one new one.
                most = _RETRIES if isinstance(exc, Ended) else int(was_connected)
                if failures > most:
                    raise
            backoff = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S)
            await asyncio.sleep(backoff.compute(failures))


class ScriptRedis(SharedScripts, Redis):  # type: ignore[misc]
    """redis-py's client, its scripts on one connection."""
