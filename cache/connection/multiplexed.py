"""
One connection that everything shares: the cache's commands, the queue's scripts.

`MultiplexedConnection` takes a connection that redis-py has dialled (TLS, login, Sentinel and
all) and pipelines on it: the commands of one event-loop tick leave in one
write, and replies are matched in order (replies.py) without a task a command.
It knows the incarnation of the server it talks to (its run id): values of an
earlier one, brought back by a restart from a snapshot or a failover to a
lagging replica, may have missed an invalidation.

Replies carry no names, so a command that joins the line of waiting calls
without being sent, or is sent without joining, hands every later reply to the
wrong caller. Three rules keep the line and the bytes in step:

- A command is encoded before it joins (`encode_command`); what cannot be
  encoded never joins. Commands that belong together are all encoded first.
- Joining and queueing the bytes is one step without an await. Whatever fails
  within it ends the connection and fails every call that waits on it.
- A call that is cancelled keeps its place; its reply is read and dropped.

A call raises `Away` when the server cannot be reached or stays silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import hiredis
import structlog
from redis.exceptions import ResponseError

from cache.connection.liveness import Vicinity, has_ended, vicinity
from cache.connection.pool import OUTAGE, explain
from cache.connection.protocol import Away, Connection, Ended, Take
from cache.connection.replies import Replies
from cache.connection.tasks import end
from cache.errors import NotEncodable

__all__ = ["Away", "Ended", "MultiplexedConnection", "encode_command"]

log = structlog.get_logger(__name__)

# A timer that fires this much late tells of a busy event loop, not of a silent server.
_LAG_S = 0.005


def encode_command(args: Sequence[Any]) -> bytes:
    """
    One command as the server reads it.

    Raises:
        NotEncodable: an argument is not text, bytes or a number, or its text is not valid
            Unicode (`json.loads` makes lone surrogates).
    """
    try:
        packed: bytes = hiredis.pack_command(tuple(args))
    except (UnicodeError, TypeError, ValueError, hiredis.HiredisError) as exc:
        # The argument itself may be a secret: only its type and the reason are named.
        kinds = ", ".join(sorted({type(arg).__name__ for arg in args[1:]}))
        reason = exc.reason if isinstance(exc, UnicodeEncodeError) else type(exc).__name__
        raise NotEncodable(f"a command's argument cannot be sent ({reason}; {kinds})") from None
    return packed


class MultiplexedConnection:
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
        # Connections that were ended because calls and replies could not be trusted to match.
        self.desynchronized = 0

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
            NotEncodable: see `encode_command`.
            ResponseError: the server refused the command.
        """
        packed = encode_command(args)
        if self._transport is None:
            await self._connect_in_time()
        reply = await self._call(packed)
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """
        Replies in order, sent in one write; a refused one is its ResponseError.

        Raises:
            Away, NotEncodable: as `execute`; where one cannot be encoded, none is sent.
        """
        packed = [encode_command(args) for args in commands]
        if self._transport is None:
            await self._connect_in_time()
        calls = [self._call(command) for command in packed]
        try:
            return [await call for call in calls]
        finally:
            for call in calls:
                if not call.done():
                    call.cancel()  # it keeps its place; nobody reads its reply
                elif not call.cancelled():
                    call.exception()  # all fail together, and the first is enough

    def fetch(self, args: tuple[Any, ...], take: Take) -> Awaitable[Any]:
        """
        One command's reply, with its last string as `take` makes it. A refusal is returned.

        Raises:
            Away, NotEncodable: as `execute`.
        """
        packed = encode_command(args)
        if self._transport is None:
            return self._fetch_anew(packed, take)
        return self._call(packed, take)

    async def _fetch_anew(self, packed: bytes, take: Take) -> Any:
        await self._connect_in_time()
        return await self._call(packed, take)

    async def evalsha(self, sha: str, count: int, *args: Any) -> Any:
        return await self.execute("EVALSHA", sha, count, *args)

    async def eval(self, source: str, count: int, *args: Any) -> Any:
        return await self.execute("EVAL", source, count, *args)

    def _call(self, packed: bytes, take: Take | None = None) -> asyncio.Future[Any]:
        """Join the line of waiting calls and queue the bytes, in one step."""
        loop = asyncio.get_running_loop()
        call: asyncio.Future[Any] = loop.create_future()
        replies = self._replies
        if replies is None:
            call.set_exception(Ended("the connection ended"))
            return call
        try:
            is_first = not replies.calls
            replies.calls.append((call, take))
            if is_first:
                self._watch_from_now(loop)
                if self._eager:
                    self._transport.write(packed)
                    return call
            if not self._out:
                loop.call_soon(self._flush)
            self._out.append(packed)
        except BaseException as exc:
            self.desynchronize(f"a command was not queued: {type(exc).__name__}", replies)
            raise
        return call

    def _watch_from_now(self, loop: asyncio.AbstractEventLoop) -> None:
        self._progress_at = loop.time()
        if not self._watched:
            self._watched = True
            loop.call_later(self._timeout_s, self._watch, self._progress_at + self._timeout_s)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is None or not out:
            return
        try:
            self._transport.write(b"".join(out))
        except BaseException as exc:
            self.desynchronize(f"commands were not written: {type(exc).__name__}")
            raise

    def desynchronize(self, reason: str, replies: Replies | None = None) -> None:
        """End a connection whose replies may not be those of the calls that wait."""
        if self._replies is None or (replies is not None and replies is not self._replies):
            return
        self.desynchronized += 1
        log.warning("connection.desynchronized", reason=reason, waiting=len(self._replies.calls))
        self.lose(reason)

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

    async def nodes(self) -> Sequence[Connection]:
        """This one has all keys."""
        return [self]

    async def has_ended(self) -> bool:
        """Whether the server's process, on this machine, is known to be gone."""
        return self._transport is None and await has_ended(self._vicinity)

    async def close(self) -> None:
        if self._dialling is not None:
            await end(self._dialling)
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
