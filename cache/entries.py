"""
An entry's values: read them, lease the right to load one, store it, forget all.

An entry is a floor and the values stored under it, on one cluster slot. A
value counts only while its entry has the floor that it was stored under, so
taking the floor away forgets all of them, and refuses every load under way,
in one step; an eviction of the floor does the same.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from redis.exceptions import ResponseError

from cache import scripts
from cache.clock import Clock
from cache.envelope import NO_GENERATION, Envelopes, Stamp, UnknownModel, Unreadable
from cache.era import Eras
from cache.keys import CACHE_MAX_TTL_S
from cache.link import Link
from cache.options import CacheOptions
from cache.stats import Counters
from cache.wire import Away

TOKEN_BYTES = 8


@dataclass(slots=True)  # not frozen: that costs 3 us a hit
class Reading:
    """
    What a read found. `found` is trusted and still kept; `fresh` also within its TTL.

    `seen` is the fill id of the stored bytes, trusted or not: a lease is only
    granted to a caller who saw what is there.
    """

    found: bool = False
    fresh: bool = False
    value: Any = None
    stamp: Stamp | None = None
    seen: bytes = b""
    generation: bytes = NO_GENERATION
    now_ms: int = 0
    unknown_model: bool = False
    data: bytes = b""
    complete: bool = False  # a window that reaches the conversation's beginning
    era: bytes | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to store one value, until something about the agent is invalidated."""

    key: str
    field: str
    token: bytes
    floor: bytes
    granted_us: int
    mark: bytes  # of the era, as read before the grant
    generation: bytes

    @property
    def keys(self) -> tuple[str, str, str]:
        """Floor, value and lease, as the scripts take them."""
        return self.key, value_key(self.key, self.field), lease_key(self.key, self.field)


@dataclass(frozen=True, slots=True)
class Held:
    """Another loads; its lease ends in `left_s` unless renewed."""

    left_s: float


class Changed:
    """The stored value is not the one that was seen: read again."""


class Entries:
    """The hash operations under every read-through."""

    def __init__(
        self,
        link: Link,
        eras: Eras,
        envelopes: Envelopes,
        options: CacheOptions,
        counters: Counters,
    ) -> None:
        self.link = link
        self.eras = eras
        self.envelopes = envelopes
        self.clock = Clock()
        self._options = options
        self._counters = counters
        self.one_slot = True  # one server has all keys; False on a cluster
        self._lease = scripts.load("cache", "lease")
        self._fill = scripts.load("cache", "fill")
        self._release = scripts.load("cache", "release")

    async def read(
        self,
        key: str,
        field: str,
        *,
        generation_key: str | None = None,
        model: type[BaseModel] | None = None,
    ) -> Reading:
        """
        One MGET of era, floor and value (and a GET of the organisation's generation in the same
        write, when there is one). On a cluster the era is a GET of its own.

        Raises:
            Away: the server cannot be asked.
        """
        place = (key, value_key(key, field))
        if generation_key is None and self.one_slot:
            found = await self.link.execute("MGET", self.eras.key, *place)
            return self._reading(key, field, found, NO_GENERATION, model)
        names = [self.eras.key] if generation_key is None else [self.eras.key, generation_key]
        commands = [("MGET", *place), *(("GET", name) for name in names)]
        (floor, data), era, *held = await self.link.execute_many(commands)
        generation = (held[0] or b"") if held else NO_GENERATION
        return self._reading(key, field, (era, floor, data), generation, model)

    def _reading(
        self,
        key: str,
        field: str,
        found: tuple[bytes | None, bytes | None, bytes | None],
        generation: bytes,
        model: type[BaseModel] | None,
    ) -> Reading:
        era, floor, data = found
        if data is None:
            return Reading(generation=generation, era=era)
        missed = Reading(seen=data[8:16], generation=generation, era=era)
        stamp = self.envelopes.stamp_of(data)
        now_ms = self.clock.now_ms()
        if stamp is None:
            self._counters.unreadable += 1
            return missed
        mark = self.eras.mark(era, key)
        if now_ms >= stamp.kept_until_ms or not self._trusts(stamp, floor, generation, mark):
            return missed
        try:
            value = self.envelopes.open(data, place(key, field), model)
        except UnknownModel:
            return replace(missed, unknown_model=True)
        except Unreadable:
            self._counters.unreadable += 1
            return missed
        fresh = now_ms < stamp.fresh_until_ms
        return Reading(
            True, fresh, value, stamp, data[8:16], generation, now_ms, data=data, era=era
        )

    def _trusts(
        self, stamp: Stamp, floor: bytes | None, generation: bytes, mark: bytes | None
    ) -> bool:
        """Whether every invalidation since would have removed this value, or its generation."""
        trusted = (
            self.link.trusted
            and stamp.mark == mark
            and stamp.generation == generation
            and floor is not None
            and stamp.floor == int(floor)
        )
        self._counters.untrusted += not trusted
        return trusted

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
        Ask for the right to load. `mode` "steal" is a writer's and is always granted. `era`
        is the caller's, if he has just read it.

        Raises:
            Away: the server cannot be asked.
        """
        token = os.urandom(TOKEN_BYTES)
        mark = await self.eras.mark_now(key, era=era)
        keys = (key, value_key(key, field), lease_key(key, field))
        args = (token, int(self._options.lease_s * 1000), seen, mode)
        reply = await self.link.run(self._lease, keys, args)
        if reply[0] == 0:
            return Held(max(reply[1], 1) / 1000)
        if reply[0] != 1:
            return Changed()
        now_us = int(reply[2])
        self.clock.learn(now_us)
        return Lease(key, field, token, reply[1], now_us, mark, generation)

    async def renew(self, lease: Lease) -> bool:
        """False when the lease was lost."""
        lease_ms = int(self._options.lease_s * 1000)
        reply = await self.link.run(self._lease, lease.keys, (lease.token, lease_ms, "", "renew"))
        return bool(reply[0] == 1 and reply[1] == lease.floor)

    def seal(
        self, lease: Lease, value: Any, *, ttl_s: float, keep_s: float = 0.0, load_s: float = 0.0
    ) -> tuple[bytes, int]:
        """
        The envelope of a value and its life in ms: `ttl_s` less jitter, then `keep_s` of grace.

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
            int(lease.floor),
        )
        return self.envelopes.seal(value, stamp, place(lease.key, lease.field)), life_ms

    async def fill(self, lease: Lease, envelope: bytes, life_ms: int) -> int:
        """2 stored while others wait, 1 stored, 0 refused: the value may be old."""
        args = (lease.token, lease.floor, envelope, life_ms)
        return await self.confirm(lease, self.link.run(self._fill, lease.keys, args))

    async def confirm(self, lease: Lease, fill: Awaitable[int]) -> int:
        """A fill's answer, which is 0 if the era of its lease has ended: it counts for nobody."""
        stored, era = await asyncio.gather(fill, self.eras.read())
        if self.eras.mark(era, lease.key) != lease.mark:
            stored = 0
        if stored:
            self._counters.fills += 1
        else:
            self._counters.fills_refused += 1
        return stored

    async def release(self, lease: Lease) -> bool:
        """Give a lease back without a value; True when others wait for it."""
        reply = await self.link.run(self._release, lease.keys[2:], (lease.token,))
        return bool(reply == 2)

    async def invalidate(self, *keys: str | bytes) -> None:
        """
        Forget entries and refuse what is being loaded for them.

        Goes past the breaker: what cannot be delivered is the caller's to keep.

        Raises:
            Away: not all of it is done.
        """
        unlinks = [("UNLINK", key) for key in keys]
        for reply in await self.link.wire.execute_many(unlinks):
            if isinstance(reply, ResponseError):
                raise reply


def value_key(key: str, field: str) -> str:
    return f"{key}:{field}"


def lease_key(key: str, field: str) -> str:
    return f"{key}:lease:{field}"


def place(key: str, field: str) -> bytes:
    """Where a value lies; encryption binds it there."""
    return value_key(key, field).encode()


__all__ = ["Away", "Changed", "Entries", "Held", "Lease", "Reading", "place"]
