"""
One connection that everything shares: the cache's commands, the queue's scripts.

`Lane` takes a connection that redis-py has dialled (TLS, login, Sentinel and
all) and pipelines on it: the commands of one event-loop tick leave in one
write, and replies are matched in order (replies.py) without a task a command.
It knows the incarnation of the server it talks to (its run id): values of an
earlier one, brought back by a restart from a snapshot or a failover to a
lagging replica, may have missed an invalidation.

A call raises `Away` when the server cannot be reached or stays silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import hiredis
from redis.exceptions import ResponseError

from cache.pool import OUTAGE, explain
from cache.replies import Replies
from cache.tasks import end
from cache.vicinity import Vicinity, has_ended, vicinity
from cache.wire import Away, Ended, Take, Wire

__all__ = ["Away", "Ended", "Lane", "Wire"]

# A timer that fires this much late tells of a busy event loop, not of a silent server.
_LAG_S = 0.005


class Lane:
    """
    A multiplexed connection, dialled again when it is needed and gone.

    With `eager` a call that finds the connection idle leaves at once, and only
    those behind it gather: sooner by a step of the loop, for one write more.
    """

    def __init__(self, client: Any, *, timeout_s: float, eager: bool = False) -> None:
        self._pool = client.connection_pool
        self._timeout_s = timeout_s
        self._eager = eager
        self._connection: Any = None
        self._transport: Any = None
        self._replies: Replies | None = None
        self._out: list[bytes] = []
        self._dialling: asyncio.Task[None] | None = None
        self._progress_at = 0.0
        self._watched = False
        self._incarnation = bytes(8)
        self._vicinity: Vicinity = None
        self._endings: set[asyncio.Task[None]] = set()

    def incarnation_of(self, key: str = "") -> bytes:  # noqa: ARG002  (one server has all)
        return self._incarnation

    @property
    def is_connected(self) -> bool:
        return self._transport is not None

    async def execute(self, *args: Any) -> Any:
        """
        One command's reply. Calls of one tick leave together.

        Raises:
            Away: no connection, or it was silent for the timeout, or ended.
            ResponseError: the server refused the command.
        """
        if self._transport is None:
            await self._connect_in_time()
        reply = await self._call(args)
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Replies in order, sent in one write; a refused one is its ResponseError."""
        if self._transport is None:
            await self._connect_in_time()
        calls = [self._call(args) for args in commands]
        try:
            return [await call for call in calls]
        finally:
            for call in calls:
                if call.done() and not call.cancelled():
                    call.exception()  # all fail together, and the first is enough

    def fetch(self, args: tuple[Any, ...], take: Take) -> Awaitable[Any]:
        """
        One command's reply, with its last string as `take` makes it. A refusal is returned.

        Raises:
            Away: as `execute`.
        """
        if self._transport is None:
            return self._fetch_anew(args, take)
        return self._call(args, take)

    async def _fetch_anew(self, args: tuple[Any, ...], take: Take) -> Any:
        await self._connect_in_time()
        return await self._call(args, take)

    async def evalsha(self, sha: str, count: int, *args: Any) -> Any:
        return await self.execute("EVALSHA", sha, count, *args)

    async def eval(self, source: str, count: int, *args: Any) -> Any:
        return await self.execute("EVAL", source, count, *args)

    def _call(self, args: Sequence[Any], take: Take | None = None) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        call: asyncio.Future[Any] = loop.create_future()
        replies = self._replies
        if replies is None:
            call.set_exception(Ended("the connection ended"))
            return call
        is_first = not replies.calls
        if is_first:
            self._progress_at = loop.time()
            if not self._watched:
                self._watched = True
                loop.call_later(self._timeout_s, self._watch, self._progress_at + self._timeout_s)
        replies.calls.append((call, take))
        packed = hiredis.pack_command(tuple(args))
        if is_first and self._eager:
            self._transport.write(packed)
            return call
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append(packed)
        return call

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(b"".join(out))

    def progress(self) -> None:
        self._progress_at = asyncio.get_running_loop().time()

    def _watch(self, due: float) -> None:
        """Lose a connection that is silent while calls wait. One timer for all of them."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._replies is None or not self._replies.calls:
            self._watched = False
            return
        left = self._progress_at + self._timeout_s - now
        if left <= 0 and now - due > _LAG_S:
            left = self._timeout_s / 4  # we were late: what came meanwhile is not read yet
        if left <= 0:
            self._watched = False
            self.lose(f"silent for {self._timeout_s} s", error=Away)
            return
        loop.call_later(left, self._watch, now + left)

    def lose(self, reason: str, replies: Replies | None = None, error: type[Away] = Ended) -> None:
        """End the connection and fail every call that waits on it."""
        if self._replies is None or (replies is not None and replies is not self._replies):
            return
        transport, connection, calls = self._transport, self._connection, self._replies.calls
        self._transport = self._replies = self._connection = None
        self._out = []
        transport.abort()
        # redis-py forgets the connection's streams, and its pool gets a slot back.
        task = asyncio.ensure_future(self._give_back(connection))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        for call, _ in calls:
            if not call.done():
                call.set_exception(error(reason))
        calls.clear()

    async def _give_back(self, connection: Any) -> None:
        try:
            with suppress(*OUTAGE):
                await connection.disconnect(nowait=True)
        finally:
            await self._pool.release(connection)

    async def _connect_in_time(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.connect()
        except TimeoutError:
            raise Away(f"not connected within {self._timeout_s} s") from None

    async def connect(self) -> None:
        """
        Dial if needed; whoever comes meanwhile waits for the same attempt.

        Raises:
            Away: refused, or not within the pool's own timeouts.
        """
        if self._transport is not None:
            return
        if self._dialling is None:
            self._dialling = asyncio.ensure_future(self._dial())
            self._dialling.add_done_callback(self._dialled)
        await asyncio.shield(self._dialling)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._dialling = None
        _ignore(task)

    async def _dial(self) -> None:
        connection = None
        try:
            connection = await self._pool.get_connection()
            await connection.send_command("INFO", "server")
            info = await connection.read_response(disable_decoding=True)
            seen = await self._seen(connection)
        except OUTAGE as exc:
            if connection is not None:
                await self._give_back(connection)
            raise Away(explain(exc)) from None
        except asyncio.CancelledError:
            if connection is not None:
                await self._give_back(connection)
            raise
        self._incarnation = _run_id(info)
        # From here on redis-py only knows how to end it.
        transport = connection._writer.transport
        self._vicinity = vicinity(transport, seen)
        self._replies = Replies(self, transport.get_protocol())
        self._out = []
        transport.set_protocol(self._replies)
        self._connection, self._transport = connection, transport

    async def _seen(self, connection: Any) -> bytes:
        try:
            await connection.send_command("CLIENT", "INFO")
            return bytes(await connection.read_response(disable_decoding=True))
        except ResponseError:
            return b""  # not permitted: then nothing is known

    async def nodes(self) -> Sequence[Wire]:
        """This one has all keys."""
        return [self]

    async def has_ended(self) -> bool:
        """Whether the server's process, on this machine, is known to be gone."""
        return self._transport is None and await has_ended(self._vicinity)

    async def close(self) -> None:
        if self._dialling is not None:
            await end([self._dialling])
        self.lose("closed")
        await asyncio.gather(*self._endings, return_exceptions=True)


def _run_id(info: bytes) -> bytes:
    for line in info.splitlines():
        if line.startswith(b"run_id:"):
            return blake2b(line[7:], digest_size=8).digest()
    return bytes(8)


def _ignore(task: asyncio.Task[None]) -> None:
    """What a background task failed with is known by those who waited."""
    if not task.cancelled():
        task.exception()
