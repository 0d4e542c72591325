"""
Reads the values of an entry, leases the right to load one, stores it, and invalidates all.

An entry is a version and the values stored under it, on one cluster slot. A value
is served only while its entry has the version that the value carries. So deleting
the version forgets all values, and refuses every load under way, in one step. If
the server evicts the version, the effect is the same.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from cache.coherence.clock import Clock
from cache.coherence.era import Eras
from cache.coherence.guarded import GuardedConnection
from cache.coherence.results import Changed, Held, Lease, Reading, lease_key, value_key
from cache.connection import scripts
from cache.connection.protocol import Away
from cache.encoding.envelope import Envelopes, UnknownModel, Unreadable
from cache.encoding.header import NO_GENERATION, Header, Stamp, StoredValue
from cache.keys import CACHE_MAX_TTL_S
from cache.options import CacheOptions
from cache.stats import Counters

if TYPE_CHECKING:
    from pydantic import BaseModel

TOKEN_BYTES = 8


class Entries:
    """The operations on entries, under every read-through."""

    def __init__(
        self,
        connection: GuardedConnection,
        eras: Eras,
        envelopes: Envelopes,
        options: CacheOptions,
        counters: Counters,
    ) -> None:
        self.connection = connection
        self.eras = eras
        self.envelopes = envelopes
        self.clock = Clock()
        self._options = options
        self._counters = counters
        self.one_slot = True  # whether one server holds every key; False on a cluster
        self._lease = scripts.load(__package__, "lease")
        self._fill = scripts.load(__package__, "fill")
        self._release = scripts.load(__package__, "release")

    async def read(
        self,
        key: str,
        field: str,
        *,
        generation_key: str | None = None,
        model: type[BaseModel] | None = None,
    ) -> Reading:
        """
        Read a value, by one MGET of era, version and value.

        With an organization, a GET of its generation leaves in the same write. On a cluster the
        era is a separate GET.

        Raises:
            Away: the server cannot be reached, or the breaker is open.
        """
        names = (self.eras.key, key, f"{key}:{field}")
        if generation_key is None and self.one_slot:
            args, decode = ("MGET", *names), self.envelopes.read
            reply = self.connection.fetch(args, decode)
            try:
                found = await reply
                if isinstance(found, ResponseError):
                    raise found
            except (Away, ResponseError) as exc:
                found = await self.connection.fetch_again(exc, args, decode)
            return self._reading(key, field, found, NO_GENERATION, model)
        others = names[:1] if generation_key is None else (names[0], generation_key)
        commands = [("MGET", *names[1:]), *(("GET", name) for name in others)]
        (version, data), era, *held = await self.connection.execute_many(commands)
        generation = (held[0] or b"") if held else NO_GENERATION
        stored = None if data is None else self.envelopes.read(data)
        return self._reading(key, field, (era, version, stored), generation, model)

    def _reading(
        self,
        key: str,
        field: str,
        found: tuple[bytes | None, bytes | None, StoredValue | None],
        generation: bytes,
        model: type[BaseModel] | None,
    ) -> Reading:
        era, version, stored = found
        if stored is None:
            return Reading(generation=generation, era=era)
        head, now_ms, unknown_model = stored.head, self.clock.now_ms(), False
        if head is None:
            self._counters.unreadable += 1
        elif now_ms < head.kept_until_ms and self.trusts(
            head, version, generation, self.eras.mark(era, key)
        ):
            try:
                value = self.envelopes.open(stored, value_key(key, field), model)
            except UnknownModel:
                unknown_model = True
            except Unreadable:
                self._counters.unreadable += 1
            else:
                fresh = now_ms < head.fresh_until_ms
                return Reading(True, fresh, value, stored, stored.seen, generation, now_ms, era=era)
        return Reading(
            seen=stored.seen, generation=generation, era=era, unknown_model=unknown_model
        )

    def trusts(
        self, head: Header, version: bytes | None, generation: bytes, mark: bytes | None
    ) -> bool:
        """Whether a value may be served: nothing has invalidated it since it was stored."""
        if (
            self.connection.trusted
            and head.mark == mark
            and head.generation == generation
            and b"%d" % head.version == version
        ):
            return True
        self._counters.untrusted += 1
        return False

    async def lease(
        self,
        key: str,
        field: str,
        seen: bytes,
        generation: bytes,
        *,
        mode: str = "grant",
        era: bytes | None = None,
    ) -> Lease | Held | Changed:
        """
        Ask for the right to load a value.

        Args:
            seen: fill id of the value that the caller has read, or b"".
            mode: "grant", or "steal" for a writer, which is always granted.
            era: the era, if the caller has just read it.

        Raises:
            Away: the server cannot be reached, or the breaker is open.
        """
        token = os.urandom(TOKEN_BYTES)
        mark = await self.eras.mark_now(key, era=era)
        keys = (key, value_key(key, field), lease_key(key, field))
        args = (token, int(self._options.lease_s * 1000), seen, mode)
        reply = await self.connection.run(self._lease, keys, args)
        if reply[0] == 0:
            return Held(max(reply[1], 1) / 1000)
        if reply[0] != 1:
            return Changed()
        now_us = int(reply[2])
        self.clock.learn(now_us)
        return Lease(key, field, token, reply[1], now_us, mark, generation)

    async def renew(self, lease: Lease) -> bool:
        """Extend a lease. False when it was lost."""
        lease_ms = int(self._options.lease_s * 1000)
        reply = await self.connection.run(
            self._lease, lease.keys, (lease.token, lease_ms, "", "renew")
        )
        return bool(reply[0] == 1 and reply[1] == lease.version)

    def seal(
        self, lease: Lease, value: Any, *, ttl_s: float, keep_s: float = 0.0, load_s: float = 0.0
    ) -> tuple[bytes, int]:
        """
        The envelope of a value, and its TTL in ms: `ttl_s` less jitter, plus `keep_s` of grace.

        Raises:
            NotEncodable: see `Envelopes.seal`.
        """
        now_ms = self.clock.now_ms()
        jitter = 1 - self._options.ttl_jitter * random.random()  # noqa: S311  (not a secret)
        fresh_ms = max(1, int(min(ttl_s, CACHE_MAX_TTL_S) * 1000 * jitter))
        life_ms = min(fresh_ms + int(keep_s * 1000), int(CACHE_MAX_TTL_S * 1000))
        stamp = Stamp(
            lease.token,
            lease.mark,
            now_ms + fresh_ms,
            now_ms + life_ms,
            lease.generation,
            int(load_s * 1e6),
            int(lease.version),
        )
        return self.envelopes.seal(value, stamp, value_key(lease.key, lease.field)), life_ms

    async def fill(self, lease: Lease, envelope: bytes, life_ms: int) -> int:
        """Store a value: 2 stored while others wait, 1 stored, 0 refused because it may be old."""
        args = (lease.token, lease.version, envelope, life_ms)
        return await self.confirm(lease, self.connection.run(self._fill, lease.keys, args))

    async def confirm(self, lease: Lease, fill: Awaitable[int]) -> int:
        """The result of a fill, or 0 if the era of its lease has ended: then nobody is served it."""
        stored, era = await asyncio.gather(fill, self.eras.read())
        if self.eras.mark(era, lease.key) != lease.mark:
            stored = 0
        if stored:
            self._counters.fills += 1
        else:
            self._counters.fills_refused += 1
        return stored

    async def release(self, lease: Lease) -> bool:
        """Give a lease back without a value. True when others wait for it."""
        reply = await self.connection.run(self._release, lease.keys[2:], (lease.token,))
        return bool(reply == 2)

    async def invalidate(self, *keys: str | bytes) -> None:
        """
        Delete the versions of entries, so that their values and running loads count no more.

        Bypasses the breaker. If it fails, the caller must keep the invalidation.

        Raises:
            Away: some may not be deleted.
        """
        unlinks = [("UNLINK", key) for key in keys]
        for reply in await self.connection.unguarded.execute_many(unlinks):
            if isinstance(reply, ResponseError):
                raise reply
