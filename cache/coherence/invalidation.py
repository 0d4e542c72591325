"""
Everything that makes cached values go: by agent, dependency, organisation, or all.

An invalidation is done when the server has it and the backplane was told. If
that fails it is kept by the link, which trusts no cached value here until it
is delivered; and this process falls silent, so that the others trust none
either once its lease is over (cache/coherence/membership.py). `invalidate` waits for the
first of the two, a lease at most, and returns True; False when it was no member
any more: the outage is older than a lease, and others may be served old values
until it is delivered.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable
from contextlib import suppress

from cache.coherence.backplane import Backplane
from cache.coherence.entries import Entries, Lease, lease_key, value_key
from cache.coherence.guarded import EVERYTHING, Missed
from cache.coherence.local import LocalLevel
from cache.coherence.membership import Membership
from cache.coherence.readthrough import ReadThrough
from cache.connection import scripts
from cache.connection.pool import OUTAGE
from cache.connection.protocol import Away
from cache.keys import (
    CACHE_INDEX_MARGIN_MS,
    CACHE_MAX_TTL_S,
    CacheKeys,
)
from cache.options import CacheOptions
from cache.stats import Counters

_ALL = "*"
_VERSIONS = {b"}", b"}:messages"}  # the ends of their keys; ids have no braces
_TRIES = 2
_EVICTED = re.compile(rb"^evicted_keys:(\d+)", re.MULTILINE)
_AT_ONCE = 1000
# Where an index lives on another cluster node than the agent, clocks are compared across
# machines; refusing a little too much costs a load.
_CLOCK_MARGIN_US = 2_000_000


class Invalidation:
    """Delivers invalidations, keeps what fails, and keeps the dependency index."""

    def __init__(
        self,
        entries: Entries,
        backplane: Backplane,
        *,
        local: LocalLevel | None,
        flights: ReadThrough,
        membership: Membership,
        options: CacheOptions,
        counters: Counters,
        cluster: bool,
    ) -> None:
        self._connection = connection = entries.connection
        self._entries = entries
        self._backplane = backplane
        self._local = local
        self._flights = flights
        self._membership = membership
        self._options = options
        self._counters = counters
        self._keys = CacheKeys(options.prefix)
        self._clock_margin_us = _CLOCK_MARGIN_US if cluster else 0
        self._depend = scripts.load(__package__, "depend")
        self._undepend = scripts.load(__package__, "undepend")
        connection.on_missed, connection.on_settled = membership.hold, membership.go_on
        connection.on_redo("entry", self._entry)
        connection.on_redo("dependency", self._dependency)
        connection.on_redo("generation", self._generation)
        connection.on_redo("window", self._window)
        connection.on_redo(EVERYTHING[0], self._everything)
        backplane.on_invalidated = self._heard
        backplane.on_lost = lambda: self._heard(_ALL)

    async def entries(self, keys: Iterable[str], *, wait: bool = True) -> bool:
        """Everything in the entries of these keys. See the module for when it returns."""
        return await self._deliver([("entry", key) for key in keys], wait=wait)

    async def announce(self, key: str) -> None:
        """An entry was written: forget the copies of what it replaces, in every process."""
        self._heard(key)
        try:
            await self._backplane.publish(key)
        except Away:
            self._connection.miss(("entry", key))

    async def dependencies(self, names: Iterable[str]) -> bool:
        """Every agent whose value holds one of these."""
        return await self._deliver([("dependency", name) for name in names])

    async def organisations(self, names: Iterable[str]) -> bool:
        """Every value of these organisations, however many, in one step each."""
        return await self._deliver([("generation", name) for name in names])

    async def window(self, agent_id: str, conversation: str) -> bool:
        """One conversation's window."""
        return await self._deliver([("window", f"{agent_id}\0{conversation}")])

    def miss_window(self, agent_id: str, conversation: str) -> None:
        """A window may lack what was committed: trust nothing until it is dropped."""
        self._connection.miss(("window", f"{agent_id}\0{conversation}"))

    async def everything(self) -> bool:
        """All cached values and windows."""
        return await self._deliver([EVERYTHING])

    async def generation(self, key: str) -> bytes:
        """The organisation's generation, made if there is none. Raises Away."""
        fresh = os.urandom(8)
        commands = (("SET", key, fresh, "NX", "EX", int(CACHE_MAX_TTL_S)), ("GET", key))
        return bytes((await self._connection.execute_many(commands))[1])

    async def depends(self, agent_id: str, names: Iterable[str], lease: Lease, ttl_ms: int) -> bool:
        """
        Note what a value holds, before it is stored; False when one changed since the lease.

        Raises:
            Away: not noted, so the value must not be stored.
        """
        since_us = lease.granted_us - self._clock_margin_us
        for name in names:
            args = (
                agent_id,
                since_us,
                ttl_ms + CACHE_INDEX_MARGIN_MS,
                self._options.max_dependents,
            )
            if not await self._connection.run(self._depend, [self._keys.dependency(name)], args):
                return False
        return True

    async def _deliver(self, missed: list[Missed], *, wait: bool = True) -> bool:
        self._counters.invalidations += len(missed)
        self._forget_here(missed)
        delivered, reason = False, "an invalidation did not arrive"
        try:
            # While something is missed nothing here is read from the server: queueing is enough.
            for _ in range(_TRIES if self._connection.trusted else 0):
                try:
                    await self._deliver_all(missed)
                except (Away, *OUTAGE) as exc:
                    reason = str(exc)
                else:
                    delivered = True
                    break
        finally:
            # Also when the caller is cancelled: the write it followed has happened.
            if not delivered:
                self._connection.miss(*missed, reason=reason)
            self._forget_here(missed)
        if not delivered and wait:
            return await self.assured()
        return delivered

    async def assured(self) -> bool:
        """
        After something was missed: wait until it was delivered after all, or this process's
        lease is over for everyone. False when neither can be had, at once.

        A server that has ended needs no waiting: what its successor has of it is of another run.
        """
        if await self._connection.unguarded.has_ended():
            return True
        silence, now = self._membership.hold(), self._membership.now
        while not self._connection.trusted:
            left_s = silence.until - now() if silence.covers else 0.0
            if left_s <= 0:
                return silence.covers
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._connection.settled()
        return True

    async def _deliver_all(self, missed: list[Missed]) -> None:
        keys = [name for kind, name in missed if kind == "entry"]
        for start in range(0, len(keys), _AT_ONCE):
            await self._entries.invalidate(*keys[start : start + _AT_ONCE])
        if keys:
            await self._backplane.publish(*keys)
        for kind, name in missed:
            if kind == "dependency":
                await self._dependency(name)
            elif kind == "generation":
                await self._generation(name)
            elif kind == "window":
                await self._window(name)
            elif kind == EVERYTHING[0]:
                await self._everything(name)

    def _forget_here(self, missed: list[Missed]) -> None:
        for kind, name in missed:
            if kind == "entry":
                self._heard(name)
            elif kind == "generation":
                self._heard(self._keys.generation(name))
            elif kind == "window":
                agent_id, _, conversation = name.partition("\0")
                self._flights.drop(f"{self._keys.windows(agent_id)}\0{conversation}\0")
            elif kind == EVERYTHING[0]:
                self._heard(_ALL)

    def _heard(self, key: str) -> None:
        """Forget in this process what an event of the backplane names."""
        if key == _ALL:
            self._flights.drop()
            if self._local is not None:
                self._local.flush()
        elif key.startswith(self._keys.generation("")):
            self._flights.drop()
            if self._local is not None:
                self._local.invalidate_group(key)
        else:
            self._flights.drop(key + "\0")
            if self._local is not None:
                self._local.invalidate(key)

    async def _entry(self, key: str) -> None:
        await self._entries.invalidate(key)
        await self._backplane.publish(key)

    async def _window(self, name: str) -> None:
        agent_id, _, conversation = name.partition("\0")
        key, field = self._keys.windows(agent_id), f"state:{conversation}"
        window = self._keys.window(agent_id, conversation)
        keys = (value_key(key, field), lease_key(key, field), window)
        await self._connection.unguarded.execute("UNLINK", *keys)

    async def _generation(self, organisation: str) -> None:
        key = self._keys.generation(organisation)
        await self._connection.unguarded.execute(
            "SET", key, os.urandom(8), "EX", int(CACHE_MAX_TTL_S)
        )
        await self._backplane.publish(key)

    async def _dependency(self, name: str) -> None:
        key = self._keys.dependency(name)
        unguarded = self._connection.unguarded
        flat = await self._undepend.run(unguarded, [key], ("begin", CACHE_INDEX_MARGIN_MS))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if b"o" in fields or (not fields and await self._evicts()):
            # Who depends is not known (any more): the index overflowed, or may have been evicted.
            self._counters.index_lost += 1
            await self._everything("")
            await unguarded.execute("HDEL", key, "o")
            return
        members = [(field, at) for field, at in fields.items() if field[:1] == b"m"]
        for start in range(0, len(members), _AT_ONCE):
            chunk = members[start : start + _AT_ONCE]
            keys = [self._keys.agent(field[1:].decode()) for field, _ in chunk]
            await self._entries.invalidate(*keys)
            await self._backplane.publish(*keys)
            for entry in keys:
                self._heard(entry)
            pairs = [part for member in chunk for part in member]
            await self._undepend.run(unguarded, [key], ("end", *pairs))

    async def _evicts(self) -> bool:
        """Whether the server has ever evicted a key; unknown counts as yes."""
        for node in await self._connection.unguarded.nodes():
            found = _EVICTED.search(await node.execute("INFO", "stats"))
            if found is None or int(found[1]):
                return True
        return False

    async def _everything(self, _name: str) -> None:
        # A version is there from the lease to the value, so a scan meets that of every load under
        # way. Values without their version count for nothing and end with their TTL.
        pattern = self._options.prefix + "{*"
        for node in await self._connection.unguarded.nodes():
            cursor: bytes | int = 0
            while cursor != b"0":
                cursor, keys = await node.execute(
                    "SCAN", cursor, "MATCH", pattern, "COUNT", _AT_ONCE
                )
                versions = [key for key in keys if key[key.index(b"}") :] in _VERSIONS]
                if versions:
                    await self._entries.invalidate(*versions)
        await self._backplane.publish(_ALL)
