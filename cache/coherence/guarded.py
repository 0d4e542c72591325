"""
Puts a connection behind a breaker, and keeps invalidations that could not be delivered.

Until all of them are delivered, nothing read from the server is trusted, because
it may hold what they would have removed. One recovery ends both: it reconnects,
delivers the missed invalidations, and closes the breaker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from cache.coherence.breaker import Breaker
from cache.coherence.change import EVERYTHING, Change
from cache.connection.protocol import Away, Connection, Decode, Ended
from cache.connection.scripts import Script
from cache.connection.tasks import end
from cache.logs import get_logger
from cache.stats import Counters

log = get_logger(__name__)

# More missed invalidations than this are replaced by one of everything.
MAX_MISSED = 10_000
_PROBE_TIMEOUT_S = 1.0


class GuardedConnection:
    """The connection that the cache's components send their commands through."""

    def __init__(self, unguarded: Connection, counters: Counters) -> None:
        self.unguarded = unguarded
        self._counters = counters
        self._breaker = Breaker(random.random)
        self._missed: dict[Change, None] = {}
        # Delivers a missed invalidation.
        self.redo: Callable[[Change], Awaitable[None]]
        self._recovery: asyncio.Task[None] | None = None
        # Whether values from the server may be served. An attribute, as each hit looks at it twice.
        self.trusted = True
        self._settled = asyncio.Event()
        self._settled.set()
        self._closed = False
        self._refusals: set[str] = set()  # logged once each

    @property
    def state(self) -> str:
        return self._breaker.state

    @property
    def missed(self) -> int:
        """Number of invalidations that are not delivered yet."""
        return len(self._missed)

    async def execute(self, *args: Any) -> Any:
        """
        Send one command and return its reply.

        Raises:
            Away: at once while the breaker is open; otherwise after the connection's timeout, or
                because the server refused the command (out of memory, no permission).
        """
        if not self.trusted:
            raise Away("the breaker is open")
        try:
            return await self.unguarded.execute(*args)
        except (Away, ResponseError) as exc:
            return await self._once_more(exc, lambda: self.unguarded.execute(*args))

    def node_of(self, key: str) -> Connection:
        """
        As `Connection.node_of`. Pass an error that its `fetch` raises or returns to `fetch_again`.

        Raises:
            Away: the breaker is open.
        """
        if not self.trusted:
            raise Away("the breaker is open")
        return self.unguarded.node_of(key)

    async def fetch_again(self, error: Exception, args: tuple[Any, ...], decode: Decode) -> Any:
        """Repeat a failed `fetch` if that may help: at another node, or after a reconnect. Raises Away."""
        if isinstance(error, Away) and not isinstance(error, Ended):
            self.trip(error)
            raise error
        first, last = await self.execute(*args)
        return first, None if last is None else decode(last, 0, len(last))

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands in one write. If the server refuses one, all fail with Away."""
        if not self.trusted:
            raise Away("the breaker is open")
        try:
            replies = await self.unguarded.execute_many(commands)
        except Away as exc:
            replies = await self._once_more(exc, lambda: self.unguarded.execute_many(commands))
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self._refused(reply)
        return replies

    async def run(self, script: Script, keys: Sequence[Any], args: Sequence[Any] = ()) -> Any:
        """Run a script. It may be sent twice, so it must be idempotent by its ids."""
        if not self.trusted:
            raise Away("the breaker is open")
        try:
            return await script.run(self.unguarded, keys, args)
        except (Away, ResponseError) as exc:
            return await self._once_more(exc, lambda: script.run(self.unguarded, keys, args))

    async def _once_more(self, error: Exception, send: Callable[[], Awaitable[Any]]) -> Any:
        """Send again if the connection ended, as idle ones do. Otherwise open the breaker."""
        if isinstance(error, Ended):
            try:
                return await send()
            except (Away, ResponseError) as exc:
                error = exc
        if isinstance(error, ResponseError):
            raise self._refused(error) from None
        assert isinstance(error, Away)  # noqa: S101
        self.trip(error)
        raise error

    def _refused(self, error: ResponseError) -> Away:
        """Turn a refused command into a miss: no error for the caller, and no outage."""
        self._counters.refused += 1
        kind = str(error).partition(" ")[0]
        if kind not in self._refusals:
            self._refusals.add(kind)
            log.warning("cache.command_refused", error=str(error)[:200])
        return Away(str(error))

    def miss(self, missed: Change, reason: str = "an invalidation did not arrive") -> None:
        """Keep an undelivered invalidation, and trust nothing until it is delivered."""
        self._missed[missed] = None
        if len(self._missed) > MAX_MISSED:
            self._missed = {EVERYTHING: None}
        self._counters.invalidations_deferred += len(missed)
        self.trip(Away(reason))

    async def settled(self) -> None:
        """Return once the server is reached and no invalidation is missed."""
        await self._settled.wait()

    def trip(self, reason: Away) -> None:
        """Open the breaker: trust nothing until recovery has succeeded."""
        if self._closed:
            return
        if self.trusted:
            self.trusted = False
            self._settled.clear()
            self._counters.outages += 1
            self._breaker.failed()
            log.warning("cache.bypassed", error=str(reason), missed=len(self._missed))
        if self._recovery is None:
            self._recovery = asyncio.ensure_future(self._recover())

    async def _recover(self) -> None:
        loop = asyncio.get_running_loop()
        start, logged = loop.time(), ""
        try:
            while True:
                await asyncio.sleep(self._breaker.wait_s())
                self._breaker.probe()
                try:
                    async with asyncio.timeout(_PROBE_TIMEOUT_S):
                        await self.unguarded.connect()
                        await self.unguarded.execute("PING")
                    await self._drain()
                except (Away, TimeoutError):
                    self._breaker.failed()
                except Exception as exc:  # noqa: BLE001  (recovery must not end before it succeeds)
                    self._breaker.failed()
                    if repr(exc) != logged:
                        logged = repr(exc)
                        log.warning("cache.recovery_failed", error=logged[:200])
                else:
                    break
        finally:
            self._recovery = None
        self._breaker.succeeded()
        self.trusted = True
        self._settled.set()
        log.info("cache.trusted_again", after_s=round(loop.time() - start, 3))

    async def _drain(self) -> None:
        # Invalidations that are missed meanwhile are delivered too, before trust returns.
        while self._missed:
            missed = next(iter(self._missed))
            try:
                await self.redo(missed)
            except ValueError as exc:
                # It can never be encoded, so invalidate everything rather than retry forever.
                if missed == EVERYTHING:
                    raise
                log.error("cache.invalidation_undeliverable", error=str(exc)[:200])  # noqa: TRY400
                self._missed[EVERYTHING] = None
            self._missed.pop(missed, None)

    async def close(self) -> None:
        self._closed = True
        if self._recovery is not None:
            await end(self._recovery)
        if self._missed:
            log.error("cache.invalidations_lost", missed=len(self._missed))
        await self.unguarded.close()
