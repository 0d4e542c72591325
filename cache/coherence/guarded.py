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
from itertools import count
from typing import Any

from redis.exceptions import ResponseError

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
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0


def wait_s(failures: int, jitter: float) -> float:
    """Time until the next probe: 50 ms, doubled up to 1 s; less up to half, as jitter is 0 to 1."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 10))
    return longest * (1 - jitter / 2)


class GuardedConnection:
    """The connection that the cache's components send their commands through."""

    def __init__(self, unguarded: Connection, counters: Counters) -> None:
        self.unguarded = unguarded
        self.spread = unguarded.spread
        self._counters = counters
        self._missed: dict[Change, bool] = {}  # -> whether it is on its way
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
    def missed(self) -> int:
        """Number of invalidations that are not delivered yet."""
        return len(self._missed)

    def execute(self, *args: Any) -> Awaitable[Any]:
        """
        Send one command and return its reply. Raises Away: at once while the breaker is open, after
        the connection's timeout, or if the server refuses it (out of memory, no permission).
        """
        return self._send(lambda: self.unguarded.execute(*args))

    def node_of(self, key: str) -> Connection:
        """The node to `fetch` from. Pass errors of that to `fetch_again`. Raises Away."""
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
        replies: list[Any] = await self._send(lambda: self.unguarded.execute_many(commands))
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self._refused(reply)
        return replies

    def run(
        self, script: Script, keys: Sequence[Any], args: Sequence[Any] = (), *, once: bool = False
    ) -> Awaitable[Any]:
        """Run a script. Unless `once`, it may be sent twice, so it must be idempotent by its ids."""
        return self._send(lambda: script.run(self.unguarded, keys, args), once=once)

    async def _send(self, send: Callable[[], Awaitable[Any]], *, once: bool = False) -> Any:
        """Send, and once more if the connection ended, as idle ones do. Otherwise open the breaker."""
        if not self.trusted:
            raise Away("the breaker is open")
        while True:
            try:
                return await send()
            except ResponseError as exc:
                raise self._refused(exc) from None
            except Away as exc:
                if once or not isinstance(exc, Ended):
                    self.trip(exc)
                    raise
                once = True

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
        self._missed[missed] = False
        if len(self._missed) > MAX_MISSED:
            self._missed = {EVERYTHING: False}
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
            log.warning("cache.bypassed", error=str(reason), missed=len(self._missed))
        if self._recovery is None:
            self._recovery = asyncio.ensure_future(self._recover())

    async def _recover(self) -> None:
        loop = asyncio.get_running_loop()
        start, logged = loop.time(), ""
        try:
            for failures in count(1):
                await asyncio.sleep(wait_s(failures, random.random()))  # noqa: S311  (not a secret)
                try:
                    async with asyncio.timeout(_PROBE_TIMEOUT_S):
                        await self.unguarded.connect()
                        await self.unguarded.execute("PING")
                    await self._drain()
                    break
                except (Away, TimeoutError):
                    pass
                except Exception as exc:  # noqa: BLE001  (recovery must not end before it succeeds)
                    if repr(exc) != logged:
                        logged = repr(exc)
                        log.warning("cache.recovery_failed", error=logged[:200])
        finally:
            self._recovery = None
        self.trusted = True
        self._settled.set()
        log.info("cache.trusted_again", after_s=round(loop.time() - start, 3))

    async def _drain(self) -> None:
        # Invalidations that are missed meanwhile are delivered too, before trust returns.
        while self._missed:
            missed = next(iter(self._missed))
            self._missed[missed] = True
            try:
                await self.redo(missed)
            except ValueError as exc:
                # It can never be encoded, so invalidate everything rather than retry forever.
                if missed == EVERYTHING:
                    raise
                log.error("cache.invalidation_undeliverable", error=str(exc)[:200])  # noqa: TRY400
                self._missed[EVERYTHING] = False
            # What was missed again since it was sent has to be sent again.
            if self._missed.get(missed):
                del self._missed[missed]

    async def close(self) -> None:
        self._closed = True
        if self._recovery is not None:
            await end(self._recovery)
        if self._missed:
            log.error("cache.invalidations_lost", missed=len(self._missed))
        await self.unguarded.close()
