"""
Keeps write intents: what this process is about to change, which the cache must not serve meanwhile.

Before a write commits, its names are invalidated and its intent stands on the server
(forget.lua): no lease is granted, so nothing that was loaded before the commit is stored.
The end of the write removes it. The intent of a process that died or was cut off lapses
by its TTL; after that a reader loads what the database has. So a crash costs only the
values that were being written.

Only the rates of clocks are compared, never their times: an intent stands for its TTL from
when it was sent, minus the drift of two clocks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from weakref import WeakSet

from cache.coherence.change import Change
from cache.coherence.clock import boot_clock, certain_s
from cache.coherence.invalidation import Invalidation, Wanted
from cache.connection.tasks import end
from cache.errors import CacheUnavailable
from cache.logs import get_logger
from cache.options import CacheOptions
from cache.stats import Counters

log = get_logger(__name__)

_TOKEN_BYTES = 8
_RENEWALS_PER_TTL = 3


class WriteToken:
    """A write that has begun. Pass it to `end_write`, also if the write failed."""

    __slots__ = ("__weakref__", "_intents", "change", "runs", "stands_until")

    def __init__(self, intents: Intents, change: Change) -> None:
        self.change = change
        self.stands_until = float("-inf" if len(change) else "inf")
        self.runs: tuple[bytes, ...] = ()  # of the servers that have the intent
        self._intents = intents

    @property
    def holds(self) -> bool:
        """
        Whether the cache certainly neither serves nor stores what is named: the intent was
        registered, or renewed, within its TTL, and the server has not restarted since.
        """
        intents = self._intents
        return intents.now() < self.stands_until and self.runs == intents.runs_of(self.change)


class Intents:
    """Begins, renews and ends intents."""

    def __init__(
        self, invalidation: Invalidation, counters: Counters, options: CacheOptions
    ) -> None:
        self.now: Callable[[], float] = boot_clock  # seconds, of any origin
        self._invalidation = invalidation
        self._connection, self._keys = invalidation.connection, invalidation.keys
        self._counters = counters
        self._ttl_s = options.intent_s
        self._refuses = options.cut_off == "refuse"
        # Weak: a token that its caller has dropped is no longer renewed, so its intent lapses.
        self._open: WeakSet[WriteToken] = WeakSet()
        self._renewing: asyncio.Task[None] | None = None

    async def begin(self, change: Change) -> WriteToken:
        """
        Invalidate what is named, and prevent that it is stored until `end`.

        Raises:
            CacheUnavailable: it could not be registered, and `cut_off` is "refuse".
        """
        if not len(change):
            return WriteToken(self, change)
        token = WriteToken(self, replace(change, token=os.urandom(_TOKEN_BYTES)))
        self._counters.intents += 1
        registered, asked = False, self._connection.trusted
        try:
            if asked:
                registered = await self._register(token)
        except BaseException:
            self._invalidation.deliver_soon(token.change)  # canceled: it may have arrived
            raise
        if not registered:
            self._counters.intents_missed += 1
            if asked:  # its reply was lost, or a part of a cluster is away: it may stand
                self._connection.miss(token.change, reason="an intent was not registered")
            if self._refuses:
                raise CacheUnavailable
        self._open.add(token)
        if self._renewing is None:
            self._renewing = asyncio.ensure_future(self._renew())
        return token

    async def end(self, token: WriteToken) -> bool:
        """
        Invalidate what was written, and remove the intent.

        True if nothing older is served from now on: the end was delivered, or the intent still
        stands, so that every load after its lapse is newer. Otherwise the end is queued.
        """
        if not len(token.change):
            return True
        self._open.discard(token)
        # Even while the breaker is open: a server that has just restarted may have lost the intent,
        # and other processes may already reach it.
        delivery = self._invalidation.deliver_soon(token.change, insist=token.holds)
        return await asyncio.shield(delivery) or token.holds

    async def _register(self, token: WriteToken, wanted: Wanted | None = None) -> bool:
        self._invalidation.forget(token.change)
        asked_at, runs = self.now(), self.runs_of(token.change)
        begin = replace(token.change, ttl_ms=int(self._ttl_s * 1000))
        problem = await self._invalidation.attempt(begin, wanted)
        if problem is not None:
            log.warning("cache.intent_missed", error=problem)
            return False
        token.stands_until = asked_at + certain_s(self._ttl_s)
        token.runs = runs
        return True

    def runs_of(self, change: Change) -> tuple[bytes, ...]:
        """The runs of the servers that have the change's keys."""
        run_of = self._connection.unguarded.incarnation_of
        return tuple(run_of(part.index or part.gone[0]) for part in change.parts(self._keys))

    async def _renew(self) -> None:
        """Register the open intents again, several times a TTL, until there is none."""
        try:
            while self._open:
                await asyncio.sleep(self._ttl_s / _RENEWALS_PER_TTL)
                await self.renew()
        finally:
            self._renewing = None

    async def renew(self) -> None:
        """Register the open intents again. (A local variable of a loop would keep a token open.)"""
        for token in list(self._open):
            if token in self._open and self._connection.trusted:
                await self._register(token, partial(self._open.__contains__, token))

    async def close(self) -> None:
        if self._renewing is not None:
            await end(self._renewing)
