"""
The lane behind a breaker, and what has to be made good once the server is back.

An invalidation that could not be delivered is kept here; until all are
delivered nothing read from the server is trusted, because it may hold what
they would have removed. Both end together: one probe reconnects, delivers
what is missing, and closes the breaker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import structlog
from redis.exceptions import ResponseError

from cache.coherence.breaker import Breaker
from cache.connection.protocol import Away, Connection, Decode, Ended, SingleServerConnection
from cache.connection.scripts import Script
from cache.connection.tasks import end
from cache.stats import Counters

log = structlog.get_logger(__name__)

# More missed invalidations than this become one of everything.
MAX_MISSED = 10_000
EVERYTHING = ("everything", "")
_PROBE_TIMEOUT_S = 1.0
Missed = tuple[str, str]
Redo = Callable[[str], Awaitable[None]]


class GuardedConnection:
    """What the cache's parts send their commands through."""

    def __init__(self, unguarded: Connection, counters: Counters) -> None:
        self.unguarded = unguarded
        self._one_server = cast(
            SingleServerConnection, unguarded
        )  # asked only where it is: Entries.one_slot
        self._counters = counters
        self._breaker = Breaker(random.random)
        self._missed: dict[Missed, None] = {}
        self._redo: dict[str, Redo] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._settled.set()
        self._closed = False
        # A missed invalidation, and the end of them: the membership hears of both.
        self.on_missed: Callable[[], object] = lambda: None
        self.on_settled: Callable[[], object] = lambda: None
        self._refusals: set[str] = set()  # logged once each

    @property
    def trusted(self) -> bool:
        """Whether what the server holds may be served."""
        return self._settled.is_set()

    @property
    def state(self) -> str:
        return self._breaker.state

    @property
    def missed(self) -> int:
        """Invalidations that the server has not received yet."""
        return len(self._missed)

    def on_redo(self, kind: str, redo: Redo) -> None:
        """How to deliver a missed invalidation of a kind, given its name."""
        self._redo[kind] = redo

    async def execute(self, *args: Any) -> Any:
        """
        Raises:
            Away: at once while the breaker is open; else after the lane's timeout, or because
                the server refused the command (out of memory, no permission).
        """
        if not self._settled.is_set():
            raise Away("the breaker is open")
        try:
            return await self.unguarded.execute(*args)
        except (Away, ResponseError) as exc:
            return await self._once_more(exc, lambda: self.unguarded.execute(*args))

    def fetch(self, args: tuple[Any, ...], decode: Decode) -> Awaitable[Any]:
        """
        `SingleServerConnection.fetch`; what it raises or returns as an error goes to `fetch_again`.

        Raises:
            Away: the breaker is open.
        """
        if not self._settled.is_set():
            raise Away("the breaker is open")
        return self._one_server.fetch(args, decode)

    async def fetch_again(self, error: Exception, args: tuple[Any, ...], decode: Decode) -> Any:
        """After a failure of `fetch`: once more, if that may help. Raises Away."""

        async def send() -> Any:
            reply = await self._one_server.fetch(args, decode)
            if isinstance(reply, ResponseError):
                raise reply
            return reply

        return await self._once_more(error, send)

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The same for several, in one write; one that is refused fails all."""
        if not self._settled.is_set():
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
        """A script; each is idempotent by the ids it is given, so it may be sent twice."""
        if not self._settled.is_set():
            raise Away("the breaker is open")
        try:
            return await script.run(self.unguarded, keys, args)
        except (Away, ResponseError) as exc:
            return await self._once_more(exc, lambda: script.run(self.unguarded, keys, args))

    async def _once_more(self, error: Exception, send: Callable[[], Awaitable[Any]]) -> Any:
        """Send again what a connection that ended took along: idle ones do. Else give up."""
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
        """A refusal is a miss: it must not reach the caller, and is no outage either."""
        self._counters.refused += 1
        kind = str(error).partition(" ")[0]
        if kind not in self._refusals:
            self._refusals.add(kind)
            log.warning("cache.command_refused", error=str(error)[:200])
        return Away(str(error))

    def miss(self, *missed: Missed, reason: str = "an invalidation did not arrive") -> None:
        """Keep invalidations that did not reach the server, and trust nothing until they do."""
        self._missed.update(dict.fromkeys(missed))
        if len(self._missed) > MAX_MISSED:
            self._missed = {EVERYTHING: None}
        self._counters.invalidations_deferred += len(missed)
        self.on_missed()
        self.trip(Away(reason))

    async def settled(self) -> None:
        """Returns once the server is reached and nothing is missed."""
        await self._settled.wait()

    def trip(self, reason: Away) -> None:
        """Trust nothing, and try until the server is back and has what is missing."""
        if self._closed:
            return
        if self._settled.is_set():
            self._settled.clear()
            self._counters.outages += 1
            self._breaker.failed()
            log.warning("cache.bypassed", error=str(reason), missed=len(self._missed))
        if self._recovery is None:
            self._recovery = asyncio.ensure_future(self._recover())

    async def _recover(self) -> None:
        loop = asyncio.get_running_loop()
        start, said = loop.time(), ""
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
                    if repr(exc) != said:
                        said = repr(exc)
                        log.warning("cache.recovery_failed", error=said[:200])
                else:
                    break
        finally:
            self._recovery = None
        self._breaker.succeeded()
        self._settled.set()
        self.on_settled()
        log.info("cache.trusted_again", after_s=round(loop.time() - start, 3))

    async def _drain(self) -> None:
        # The drain rule: what comes meanwhile is delivered too, before anything is trusted.
        while self._missed:
            kind, name = next(iter(self._missed))
            try:
                await self._redo[kind](name)
            except ValueError as exc:
                # What cannot be encoded or read never will be: forget all rather than try for ever.
                if (kind, name) == EVERYTHING:
                    raise
                log.error("cache.invalidation_undeliverable", kind=kind, error=str(exc)[:200])  # noqa: TRY400
                self._missed[EVERYTHING] = None
            self._missed.pop((kind, name), None)

    async def close(self) -> None:
        self._closed = True
        if self._recovery is not None:
            await end(self._recovery)
        if self._missed:
            log.error("cache.invalidations_lost", missed=len(self._missed))
        await self.unguarded.close()
