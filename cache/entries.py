"""
An entry's values: read them, lease the right to load one, store it, forget all.

An entry is a floor and the values stored under it, on one cluster slot. A
value counts only while its entry has the floor that it was stored under, so
taking the floor away forgets all of them, and refuses every load under way,
in one step; an eviction of the floor does the same.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from redis.exceptions import ResponseError

from cache import scripts
from cache.envelope import NO_GENERATION, Envelopes, Stamp, UnknownModel, Unreadable
from cache.keys import CACHE_MAX_TTL_S
from cache.lane import Away
from cache.link import Link
from cache.options import CacheOptions
from cache.stats import Counters

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


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to store one value, until something about the agent is invalidated."""

    key: str
    field: str
    token: bytes
    floor: bytes
    granted_us: int
    incarnation: bytes
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


class Clock:
    """The server's time, from this process's clock and the difference last seen."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now_ms(self) -> int:
        return int((time.time() + self._ahead_s) * 1000)

    def learn(self, server_us: int) -> None:
        self._ahead_s = server_us / 1e6 - time.time()


class Entries:
    """The hash operations under every read-through."""

    def __init__(
        self, link: Link, envelopes: Envelopes, options: CacheOptions, counters: Counters
    ) -> None:
        self.link = link
        self.envelopes = envelopes
        self.clock = Clock()
        self._options = options
        self._counters = counters
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
        One MGET of floor and value (and a GET of the organisation's generation in the same
        write, when there is one).

        Raises:
            Away: the server cannot be asked.
        """
        if generation_key is None:
            found = await self.link.execute("MGET", key, value_key(key, field))
            generation = NO_GENERATION
        else:
            commands = (("GET", generation_key), ("MGET", key, value_key(key, field)))
            generation, found = await self.link.execute_many(commands)
            generation = generation or b""
        return self._reading(key, field, found, generation, model)

    def _reading(
        self,
        key: str,
        field: str,
        found: list[bytes | None],
        generation: bytes,
        model: type[BaseModel] | None,
    ) -> Reading:
        floor, data = found
        if data is None:
            return Reading(generation=generation)
        missed = Reading(seen=data[8:16], generation=generation)
        stamp = self.envelopes.stamp_of(data)
        now_ms = self.clock.now_ms()
        if stamp is None:
            self._counters.unreadable += 1
            return missed
        if now_ms >= stamp.kept_until_ms or not self._trusts(stamp, floor, generation):
            return missed
        try:
            value = self.envelopes.open(data, place(key, field), model)
        except UnknownModel:
            return replace(missed, unknown_model=True)
        except Unreadable:
            self._counters.unreadable += 1
            return missed
        fresh = now_ms < stamp.fresh_until_ms
        return Reading(True, fresh, value, stamp, data[8:16], generation, now_ms, data=data)

    def _trusts(self, stamp: Stamp, floor: bytes | None, generation: bytes) -> bool:
        """Whether every invalidation since would have removed this value, or its generation."""
        trusted = (
            self.link.trusted
            and stamp.incarnation == self.link.wire.incarnation
            and stamp.generation == generation
            and floor is not None
            and stamp.floor == int(floor)
        )
        self._counters.untrusted += not trusted
        return trusted

    async def lease(
        self, key: str, field: str, seen: bytes, generation: bytes, *, mode: str = "grant"
    ) -> Lease | Held | Changed:
        """
        Ask for the right to load. `mode` "steal" is a writer's and is always granted.

        Raises:
            Away: the server cannot be asked.
        """
        token = os.urandom(TOKEN_BYTES)
        incarnation = self.link.wire.incarnation
        keys = (key, value_key(key, field), lease_key(key, field))
        args = (token, int(self._options.lease_s * 1000), seen, mode)
        reply = await self.link.run(self._lease, keys, args)
        if reply[0] == 0:
            return Held(max(reply[1], 1) / 1000)
        if reply[0] != 1:
            return Changed()
        now_us = int(reply[2])
        self.clock.learn(now_us)
        if self.link.wire.incarnation != incarnation:
            return Changed()
        return Lease(key, field, token, reply[1], now_us, incarnation, generation)

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
            lease.incarnation,
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
        stored: int = await self.link.run(self._fill, lease.keys, args)
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


__all__ = ["Away", "Changed", "Clock", "Entries", "Held", "Lease", "Reading", "place"]
