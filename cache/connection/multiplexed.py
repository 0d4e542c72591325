"""
Shares one connection among many callers: the cache's commands, the queue's scripts.

`MultiplexedConnection` pipelines: the commands of one event-loop tick leave in one
write, and replies are matched in order (replies.py), without a task for each
command. It knows which run of the server it talks to (by the run id): values of an
earlier run, which a restart from a snapshot or a failover to a lagging replica
brings back, may have missed an invalidation (incarnation.py).

Replies carry no ids. A command that joins the queue of waiting calls but is not
sent, or is sent but does not join, would hand every later reply to the wrong
caller. Three rules keep queue and bytes in step:

- A command is encoded before it joins (commands.py), so what cannot be encoded
  never joins. Commands that belong together are all encoded first.
- Joining the queue and buffering the bytes is one step, without an await. If it
  fails, the connection ends and every waiting call fails.
- A canceled call keeps its place. Its reply is read and dropped.

A call raises `Away` when the server cannot be reached or stays silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import SSLConnection
from redis.exceptions import ResponseError

from cache.connection.commands import encode_command
from cache.connection.dialing import dial, give_back
from cache.connection.incarnation import ASK, UNKNOWN
from cache.connection.outbox import Outbox
from cache.connection.pool import OUTAGE
from cache.connection.protocol import SILENT_S, Away, Connection, Decode, Ended
from cache.connection.replies import Replies
from cache.connection.tasks import end, joined, keep
from cache.logs import get_logger

log = get_logger(__name__)

_CLOSED = "closed"
# If a timer fires this much late, the event loop was busy, and replies may lie unread.
_LAG_S = 0.005


class MultiplexedConnection:
    """
    One connection for many callers. A call dials again if the connection is gone.

    Args:
        timeout_s: the connection is lost after this long without a byte while calls wait.
        eager: write the first call at once, when no other waits, instead of at the end of the
            tick. It leaves one loop step earlier, at the cost of one more write.
        follows_run: ask for the server's run again while the connection is in use.
        blocks: its calls wait at the server, so that silence says nothing of the server.
        outbox: of several connections, which then write together.
    """

    spread = False

    def __init__(
        self,
        client: Any,
        *,
        timeout_s: float,
        eager: bool = False,
        follows_run: bool = False,
        blocks: bool = False,
        outbox: Outbox | None = None,
    ) -> None:
        self._pool = client.connection_pool
        # A pool of several servers reads replies in its own way, and is told which connection ended.
        self._replies_class = getattr(self._pool, "replies_class", Replies)
        self._suspect = getattr(self._pool, "suspect", None)
        self._timeout_s = timeout_s
        self._suspects_silence = self._suspect is not None and not blocks
        self._look_s = min(SILENT_S, timeout_s) if self._suspects_silence else timeout_s
        self._eager = eager
        self._follows_run = follows_run
        self._connection: Any = None
        self._transport: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the transport
        self._replies: Replies | None = None
        self._outbox = outbox or Outbox()
        self._out: list[bytes] = []
        self._dialing: asyncio.Task[None] | None = None
        self._progress_at = 0.0
        self._watched = False
        self._is_retired = False
        self._incarnation = UNKNOWN
        self._endings: set[asyncio.Task[None]] = set()
        # Connections that were ended because calls and replies might not match.
        self.desynchronized = 0

    def incarnation_of(self, key: str = "") -> bytes:  # noqa: ARG002  (one server has every key)
        return self._incarnation.digest

    def node_of(self, key: str) -> MultiplexedConnection:  # noqa: ARG002  (as incarnation_of)
        return self

    def doubt(self, key: str) -> None:  # noqa: ARG002  (as incarnation_of)
        self._incarnation.doubt()

    @property
    def reign(self) -> tuple[bytes, bytes]:
        """The process at the other end, and its replication id as last known; empty before."""
        return self._incarnation.run_id, self._incarnation.reign

    def learn_reign(self, replication: bytes) -> None:
        """Take the replication id from a reply to INFO."""
        self._incarnation.learn(replication)

    @property
    def is_connected(self) -> bool:
        return self._transport is not None

    @property
    def awaits_replies(self) -> bool:
        """Whether commands were written, and not answered yet."""
        return self._replies is not None and len(self._replies.calls) > len(self._out)

    async def execute(self, *args: Any) -> Any:
        """
        Send one command and return its reply.

        Raises:
            Away: there is no connection, it was silent for the timeout, or it ended.
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
        Send commands in one write and return their replies, ResponseErrors among them.

        Raises:
            Away, NotEncodable: as `execute`. If one command cannot be encoded, none is sent.
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
                    call.cancel()  # its place in the queue stays
                elif not call.cancelled():
                    call.exception()  # mark as retrieved: the first error is raised

    def fetch(self, args: tuple[Any, ...], decode: Decode) -> Awaitable[Any]:
        """
        Send one command. Of the reply's two strings the last is decoded; errors are returned.

        Raises:
            Away, NotEncodable: as `execute`.
        """
        packed = encode_command(args)
        if self._transport is None:
            return self._dial_and_fetch(packed, decode)
        return self._call(packed, decode)

    async def _dial_and_fetch(self, packed: bytes, decode: Decode) -> Any:
        await self._connect_in_time()
        return await self._call(packed, decode)

    async def evalsha(self, sha: str, count: int, *args: Any) -> Any:
        return await self.execute("EVALSHA", sha, count, *args)

    async def eval(self, source: str, count: int, *args: Any) -> Any:
        return await self.execute("EVAL", source, count, *args)

    def _call(self, packed: bytes, decode: Decode | None = None) -> asyncio.Future[Any]:
        """Join the queue of waiting calls and buffer the bytes, in one step."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop and self._loop is not None:
            raise RuntimeError("this connection is of another event loop; open one in each loop")
        call: asyncio.Future[Any] = loop.create_future()
        replies = self._replies
        if replies is None:
            call.set_exception(Ended("the connection ended"))
            return call
        try:
            is_first = not replies.calls
            if is_first:
                self._watch_from_now(loop)
                if self._progress_at > self._incarnation.ask_at:
                    self._ask_run(loop, replies)
            replies.calls.append((call, decode))
            if is_first and self._eager:
                self._transport.write(packed)
                return call
            if not self._out:
                self._outbox.add(self._flush, loop)
            self._out.append(packed)
        except BaseException as exc:
            self.desynchronize(f"a command was not buffered: {type(exc).__name__}", replies)
            raise
        return call

    def _ask_run(self, loop: asyncio.AbstractEventLoop, replies: Replies) -> None:
        """Ask for the run again, in the write of the next commands: before they end, it is known."""
        replies.calls.append((self._incarnation.asked(loop, self._progress_at), None))
        if not self._out:
            self._outbox.add(self._flush, loop)
        self._out.append(ASK)

    def _watch_from_now(self, loop: asyncio.AbstractEventLoop) -> None:
        self._progress_at = loop.time()
        if not self._watched:
            self._watched = True
            loop.call_later(self._look_s, self._watch, self._progress_at + self._look_s)

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
        """End a connection whose next replies may not belong to the waiting calls."""
        if self._replies is None or (replies is not None and replies is not self._replies):
            return
        self.desynchronized += 1
        log.warning("connection.desynchronized", reason=reason, waiting=len(self._replies.calls))
        self.lose(reason)

    def progress(self) -> None:
        loop = asyncio.get_running_loop()
        self._progress_at = loop.time()
        if not self._eager:
            self._outbox.flush_soon(loop)
        # Here too, as under load there is always a call that waits.
        replies = self._replies
        if replies and replies.calls and self._progress_at > self._incarnation.ask_at:
            self._ask_run(loop, replies)

    def _watch(self, due: float) -> None:
        """
        End a connection that is silent while calls wait. One timer serves all calls.

        One server among several is suspected long before that.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._replies is None or not self._replies.calls:
            self._watched = False
            return
        left = self._progress_at + self._timeout_s - now
        if left <= 0 and now - due > _LAG_S:
            left = self._timeout_s / 4  # the loop was late: replies may have arrived unread
        if left <= 0:
            self._watched = False
            self.lose(f"silent for {self._timeout_s} s", error=Away)
            return
        if self._suspects_silence:
            if now - self._progress_at >= self._look_s:
                self._pool.suspect(self._connection, "silent")
            left = min(left, self._look_s)
        loop.call_later(left, self._watch, now + left)

    def lose(self, reason: str, replies: Replies | None = None, error: type[Away] = Ended) -> None:
        """End the connection and fail every waiting call."""
        if self._replies is None or (replies is not None and replies is not self._replies):
            return
        transport, connection, calls = self._transport, self._connection, self._replies.calls
        self._transport = self._replies = self._connection = None
        self._out = []
        transport.abort()
        if self._suspect is not None and reason != _CLOSED:
            self._suspect(connection, reason)
        keep(self._endings, give_back(self._pool, connection))
        for call, _ in calls:
            if not call.done():
                call.set_exception(error(reason))
        calls.clear()

    async def _connect_in_time(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.connect()
        except TimeoutError:
            # A server without TLS answers no handshake.
            by_tls = issubclass(self._pool.connection_class, SSLConnection)
            hint = "; if it does not speak TLS, use redis:// instead of rediss://" if by_tls else ""
            raise Away(f"not connected within {self._timeout_s} s{hint}") from None

    async def connect(self) -> None:
        """
        Dial if there is no connection. Concurrent calls share one attempt.

        Raises:
            Away: refused, or not within the pool's timeouts.
        """
        if self._transport is not None:
            return
        if self._is_retired:
            raise Ended("the node is not on the map any more")
        if self._dialing is None:
            self._dialing = asyncio.ensure_future(self._dial())
            self._dialing.add_done_callback(self._dialed)
        await joined(self._dialing)

    def _dialed(self, task: asyncio.Task[None]) -> None:
        self._dialing = None
        if not task.cancelled():
            task.exception()  # mark as retrieved: the callers that wait get it

    async def _dial(self) -> None:
        dialed = await dial(self._pool)
        self._loop = asyncio.get_running_loop()
        self._incarnation = dialed.incarnation
        if self._follows_run:
            self._incarnation.follow(self._loop.time())
        self._replies = self._replies_class(self, dialed.transport.get_protocol())
        self._out = []
        dialed.transport.set_protocol(self._replies)
        self._connection, self._transport = dialed.connection, dialed.transport

    async def nodes(self) -> Sequence[Connection]:
        """This connection alone: its server has every key."""
        return [self]

    async def retire(self) -> None:
        """
        Close for good, with its pool, which nobody else has.

        A caller that still has it would open a connection that nobody closes, and a dial that is
        canceled leaves an open one in the pool.
        """
        self._is_retired = True
        await self.close()
        with suppress(*OUTAGE):
            await self._pool.disconnect()

    async def close(self) -> None:
        if self._dialing is not None:
            await end(self._dialing)
        self.lose(_CLOSED)
        await asyncio.gather(*self._endings, return_exceptions=True)
