"""
Reads the values of an entry, leases the right to load one, and stores it.

An entry is a version and the values stored under it, in one cluster slot. A value is
served only while it carries the current version of its entry, and the server still has
the run on which the value was stored. So deleting the version (forget.lua) invalidates
all values and refuses every load under way, in one step. Eviction of the version has the
same effect.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from cache.coherence.clock import Clock
from cache.coherence.dependencies import Record
from cache.coherence.guarded import GuardedConnection
from cache.coherence.results import Changed, Held, Intended, Lease, Reading, lease_key, value_key
from cache.connection import scripts
from cache.connection.protocol import Away
from cache.encoding.envelope import Envelopes, UnknownModel, Unreadable
from cache.encoding.header import Header, Stamp, StoredValue
from cache.keys import CACHE_LARGE, CACHE_MAX_TTL_S, CACHE_STAGED_TTL_MS, staged_of
from cache.options import CacheOptions
from cache.stats import Counters

if TYPE_CHECKING:
    from pydantic import BaseModel

TOKEN_BYTES = 8


class Entries:
    """The operations on entries that every read-through uses."""

    def __init__(
        self,
        connection: GuardedConnection,
        envelopes: Envelopes,
        options: CacheOptions,
        counters: Counters,
    ) -> None:
        self.connection = connection
        self.envelopes = envelopes
        self.clock = Clock()
        self._ttl_jitter = options.ttl_jitter
        self._lease_ms = int(options.lease_s * 1000)
        self._counters = counters
        self._lease = scripts.load(__package__, "lease")
        self._fill = scripts.load(__package__, "fill")
        self._release = scripts.load(__package__, "release")

    async def read(self, key: str, field: str, *, model: type[BaseModel] | None = None) -> Reading:
        """Read a value, by one MGET of version and value. Raises Away."""
        name = value_key(key, field)
        args, decode = ("MGET", key, name), self.envelopes.read
        node = self.connection.node_of(key)
        try:
            found = await node.fetch(args, decode)
            if isinstance(found, ResponseError):
                raise found
        except (Away, ResponseError) as exc:
            found = await self.connection.fetch_again(exc, args, decode)
            node = self.connection.unguarded
        return self._reading(key, name, found, model, node.incarnation_of(key))

    async def read_many(
        self, places: Sequence[tuple[str, str]], *, model: type[BaseModel] | None = None
    ) -> list[Reading]:
        """As `read`, for pairs of key and field: by one MGET, or on a cluster by one write per node."""
        if self.connection.spread:
            reads = (self.read(key, field, model=model) for key, field in places)
            return await asyncio.gather(*reads)
        names = [name for key, field in places for name in (key, value_key(key, field))]
        replies, readings = iter(await self.connection.execute("MGET", *names)), []
        for (key, field), version, data in zip(places, replies, replies, strict=True):
            found = (version, None if data is None else self.envelopes.read(data))
            name, run = value_key(key, field), self.run_of(key)
            readings.append(self._reading(key, name, found, model, run))
        return readings

    def _reading(
        self,
        key: str,
        name: str,
        found: tuple[bytes | None, StoredValue | None],
        model: type[BaseModel] | None,
        run: bytes,
    ) -> Reading:
        version, stored = found
        if stored is None:
            return Reading()
        head, now_ms, unknown_model = stored.head, self.clock.now_ms(), False
        if head is None:
            self._counters.unreadable += 1
        elif now_ms < head.kept_until_ms and self.trusts(head, version, run):
            try:
                value = self.envelopes.open(stored, name, model)
            except UnknownModel:
                unknown_model = True
            except Unreadable:
                self._counters.unreadable += 1
            else:
                fresh = now_ms < head.fresh_until_ms
                return Reading(True, fresh, value, stored, stored.seen, now_ms)
        if head is not None and head.run != run:  # it may be a later run than the known one
            self.connection.unguarded.doubt(key)
        return Reading(seen=stored.seen, unknown_model=unknown_model)

    def trusts(self, head: Header, version: bytes | None, run: bytes) -> bool:
        """Whether a value may be served: nothing has invalidated it since it was stored."""
        if self.connection.trusted and head.run == run and b"%d" % head.version == version:
            return True
        self._counters.untrusted += 1
        return False

    def run_of(self, key: str) -> bytes:
        """The run of the server that holds a key. Values of another run are not served."""
        return self.connection.unguarded.incarnation_of(key)

    async def lease(
        self, key: str, field: str, intents: str, seen: bytes, *, mode: str, once: bool = False
    ) -> Lease | Held | Changed | Intended:
        """
        Ask for the right to load a value.

        Args:
            intents: key of the intents that keep the value from being stored.
            seen: fill id of the value that the caller has read, or b"".
            mode: "grant", or "steal" for a writer, which takes it from any holder.
            once: send the request only once, because a late copy would be granted under the same
                version.
        """
        token, run = os.urandom(TOKEN_BYTES), self.run_of(key)
        keys = (key, value_key(key, field), lease_key(key, field), intents)
        args = (token, self._lease_ms, seen, mode)
        reply = await self.connection.run(self._lease, keys, args, once=once)
        if reply[0] == 0:
            return Held(max(reply[1], 1) / 1000)
        if reply[0] == 4:
            return Intended()
        # A run that was learned after the grant could belong to a server that has lost an
        # invalidation, but not the lease.
        if reply[0] != 1 or run != self.run_of(key):
            return Changed()
        now_us = int(reply[2])
        self.clock.learn(now_us, run)
        return Lease(key, field, token, reply[1], now_us, run)

    async def renew(self, lease: Lease) -> bool:
        """Extend a lease. False when it was lost."""
        args = (lease.token, self._lease_ms, "", "renew")
        reply = await self.connection.run(self._lease, lease.keys, args)
        return bool(reply[0] == 1 and reply[1] == lease.version)

    def seal(
        self, lease: Lease, value: object, *, ttl_s: float, keep_s: float = 0.0, load_s: float = 0.0
    ) -> tuple[bytes, int]:
        """The envelope of a value, and its TTL in ms: `ttl_s` minus jitter, plus `keep_s` of grace."""
        now_ms = self.clock.now_ms()
        jitter = 1 - self._ttl_jitter * random.random()  # noqa: S311  (not a secret)
        fresh_ms = max(1, int(ttl_s * 1000 * jitter))
        life_ms = min(fresh_ms + int(keep_s * 1000), int(CACHE_MAX_TTL_S * 1000))
        ends, load_us = (now_ms + fresh_ms, now_ms + life_ms), int(load_s * 1e6)
        stamp = Stamp(lease.token, lease.run, *ends, load_us, int(lease.version))
        return self.envelopes.seal(value, stamp, value_key(lease.key, lease.field)), life_ms

    async def fill(self, lease: Lease, envelope: bytes, life_ms: int, record: Record) -> int:
        """Store a value: 2 stored while others wait, 1 stored, 0 refused because it may be stale."""
        staged = staged_of(lease.key, lease.token) if len(envelope) > CACHE_LARGE else ""
        if staged:
            await self.connection.execute("SET", staged, envelope, "PX", CACHE_STAGED_TTL_MS)
            envelope = b""
        keys, args = (*lease.keys, *record[0]), (lease.token, lease.version, envelope, life_ms)
        fill = self.connection.run(self._fill, keys, (*args, *record[1]))
        stored = await self.confirm(lease, fill)
        if staged and not stored:
            await self.connection.execute("UNLINK", staged)
        return stored

    async def confirm(self, lease: Lease, fill: Awaitable[int]) -> int:
        """The result of a fill; 0 if the server has restarted since the lease."""
        stored = await fill
        if lease.run != self.run_of(lease.key):
            stored = 0  # no reader would be served it
        self._counters.fills += stored > 0
        self._counters.fills_refused += stored == 0
        return stored

    async def release(self, lease: Lease) -> bool:
        """Release a lease without a value. True if others wait for it."""
        reply = await self.connection.run(self._release, lease.keys[2:], (lease.token,))
        return bool(reply == 2)
