"""
Invalidates cached values: by agent, dependency, organization, window, or all.

An invalidation is delivered when the server has it and it is published on the
backplane. If delivery fails, GuardedConnection keeps it, and this process serves
no cached value until it is delivered. The process also stops renewing its
membership, so that other processes trust no cached value once its lease is over
(cache/coherence/membership.py).

`invalidate` waits for the first of the two, which takes at most one lease, and
returns True. It returns False if the process was no member any more: the outage is
older than a lease, and other processes may serve old values until delivery.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress

from cache.coherence.backplane import Backplane
from cache.coherence.dependencies import DependencyIndex
from cache.coherence.entries import Entries
from cache.coherence.guarded import EVERYTHING, Missed
from cache.coherence.local import LocalLevel
from cache.coherence.membership import Membership
from cache.coherence.readthrough import ReadThrough
from cache.coherence.results import lease_key, value_key
from cache.connection.pool import OUTAGE
from cache.connection.protocol import Away
from cache.keys import CACHE_MAX_TTL_S, CacheKeys
from cache.options import CacheOptions
from cache.stats import Counters

_ALL = "*"
_VERSIONS = {b"}", b"}:messages"}  # how keys of versions end; ids contain no braces
_TRIES = 2
_AT_ONCE = 1000


class Invalidation:
    """Delivers invalidations, and hands those that fail to the guarded connection."""

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
        self.index = DependencyIndex(
            connection, self._keys, max_members=options.max_dependents, cluster=cluster
        )
        connection.on_missed, connection.on_settled = membership.hold, membership.go_on
        connection.on_redo("entry", self._entry)
        connection.on_redo("dependency", self._dependency)
        connection.on_redo("generation", self._generation)
        connection.on_redo("window", self._window)
        connection.on_redo(EVERYTHING[0], self._everything)
        backplane.on_invalidated = self._forget
        backplane.on_lost = lambda: self._forget(_ALL)

    async def entries(self, keys: Iterable[str], *, wait: bool = True) -> bool:
        """Invalidate everything in these entries. The module says when it returns."""
        return await self._deliver([("entry", key) for key in keys], wait=wait)

    async def announce(self, key: str) -> None:
        """Drop the copies of an entry in every process, after it was written."""
        self._forget(key)
        try:
            await self._backplane.publish(key)
        except Away:
            self._connection.miss(("entry", key))

    async def dependencies(self, names: Iterable[str]) -> bool:
        """Invalidate every agent whose value depends on one of these names."""
        return await self._deliver([("dependency", name) for name in names])

    async def organisations(self, names: Iterable[str]) -> bool:
        """Invalidate every value of these organizations: one step each, however many values."""
        return await self._deliver([("generation", name) for name in names])

    async def window(self, agent_id: str, conversation: str) -> bool:
        """Invalidate the window of one conversation."""
        return await self._deliver([("window", f"{agent_id}\0{conversation}")])

    def miss_window(self, agent_id: str, conversation: str) -> None:
        """A window may lack committed messages: bypass the cache until it is dropped."""
        self._connection.miss(("window", f"{agent_id}\0{conversation}"))

    async def everything(self) -> bool:
        """Invalidate all values and windows."""
        return await self._deliver([EVERYTHING])

    async def generation(self, key: str) -> bytes:
        """An organization's generation, created if there is none. Raises Away."""
        fresh = os.urandom(8)
        commands = (("SET", key, fresh, "NX", "EX", int(CACHE_MAX_TTL_S)), ("GET", key))
        return bytes((await self._connection.execute_many(commands))[1])

    async def _deliver(self, missed: list[Missed], *, wait: bool = True) -> bool:
        self._counters.invalidations += len(missed)
        self._forget_all(missed)
        delivered, reason = False, "an invalidation did not arrive"
        try:
            # While something is missed, this process reads nothing from the server: queue it.
            for _ in range(_TRIES if self._connection.trusted else 0):
                try:
                    await self._deliver_all(missed)
                except (Away, *OUTAGE) as exc:
                    reason = str(exc)
                else:
                    delivered = True
                    break
        finally:
            # Also if the caller is canceled: the write before this call has happened.
            if not delivered:
                self._connection.miss(*missed, reason=reason)
            self._forget_all(missed)
        if not delivered and wait:
            return await self.assured()
        return delivered

    async def assured(self) -> bool:
        """
        After a missed invalidation, wait until it is delivered or this process's lease is over.

        False, at once, if neither will happen. If the server has ended, there is nothing to wait
        for: its successor is another run, and values of this run are not served.
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

    def _forget_all(self, missed: list[Missed]) -> None:
        for kind, name in missed:
            if kind == "entry":
                self._forget(name)
            elif kind == "generation":
                self._forget(self._keys.generation(name))
            elif kind == "window":
                agent_id, _, conversation = name.partition("\0")
                self._flights.drop(f"{self._keys.windows(agent_id)}\0{conversation}\0")
            elif kind == EVERYTHING[0]:
                self._forget(_ALL)

    def _forget(self, key: str) -> None:
        """Drop the copies and flights in this process that an event of the backplane names."""
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
        members = await self.index.begin(name)
        if members is None:
            self._counters.index_lost += 1
            await self._everything("")
            await self.index.clear_overflow(name)
            return
        for start in range(0, len(members), _AT_ONCE):
            chunk = members[start : start + _AT_ONCE]
            keys = [self.index.entry_key(member) for member in chunk]
            await self._entries.invalidate(*keys)
            await self._backplane.publish(*keys)
            for key in keys:
                self._forget(key)
            await self.index.remove(name, chunk)

    async def _everything(self, _name: str) -> None:
        # A version exists from the lease until its last value expires, so the scan finds that of
        # every load under way. Values without a version are not served, and expire by their TTL.
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
