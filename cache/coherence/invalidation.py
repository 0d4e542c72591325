"""
Invalidates cached values: by agent, dependency, organization, conversation, or all.

An invalidation is delivered when the server has executed it (forget.lua). If delivery
fails, GuardedConnection keeps it, this process serves no cached value until it is
delivered, and the call returns False: other processes may serve older values until then.
A write that must not depend on a later call begins an intent (intents.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from cache.coherence.backplane import ALL, Backplane
from cache.coherence.change import Change, Part
from cache.coherence.dependencies import listed, prune
from cache.coherence.guarded import GuardedConnection
from cache.connection import scripts
from cache.connection.pool import OUTAGE
from cache.connection.protocol import Away
from cache.connection.refusals import explain
from cache.connection.tasks import all_of, keep
from cache.keys import (
    CACHE_BACKPLANE_EVENTS,
    CACHE_INDEX_MARGIN_MS,
    CACHE_MAX_TTL_S,
    CacheKeys,
    quoted,
)
from cache.stats import Counters

# Most names that one script invalidates: 1 to 2 ms of the server (figures: docs/caching.md).
AT_ONCE = 200
_TRIES = 2
_PAGE = 1000
_GLOB = re.compile(r"([\\*?\[\]])")
Wanted = Callable[[], bool]


class Invalidation:
    """Delivers invalidations, and hands those that fail to the guarded connection."""

    def __init__(
        self,
        connection: GuardedConnection,
        backplane: Backplane,
        keys: CacheKeys,
        counters: Counters,
    ) -> None:
        self.connection = connection
        self._backplane = backplane
        self.keys = keys
        self._counters = counters
        self._cluster = connection.spread
        self.at_once = AT_ONCE
        self._script = scripts.load(__package__, "forget")
        self._deliveries: set[asyncio.Task[bool]] = set()
        # Called when this process has ended a write of an agent: its entry may be loaded again.
        self.ended_here: Callable[[str], None] = lambda _key: None
        connection.redo = self.send

    async def deliver(self, change: Change) -> bool:
        """Invalidate. True if the server has it; otherwise it is queued."""
        # A canceled caller does not stop the delivery: the write before this call has happened.
        return await asyncio.shield(self.deliver_soon(change))

    def deliver_soon(self, change: Change, *, insist: bool = False) -> asyncio.Task[bool]:
        """Invalidate in a separate task; if `insist`, even while the breaker is open."""
        self._counters.invalidations += len(change)
        return keep(self._deliveries, self._deliver(change, insist=insist))

    async def announce(self, agent_id: str) -> None:
        """Drop the copies of an agent's entry in every process, after it was written."""
        key = self.keys.agent(agent_id)
        self._backplane.forget_here(key)
        try:
            await self._backplane.publish(key)
        except Away:
            self.connection.miss(Change(agents=(agent_id,)))

    def miss_window(self, agent_id: str, conversation: str) -> None:
        """A window may lack committed messages: bypass the cache until it is dropped."""
        self.connection.miss(Change(conversations=((agent_id, conversation),)))

    async def _deliver(self, change: Change, *, insist: bool) -> bool:
        problem: str | None = "an invalidation did not arrive"
        self.forget(change)
        try:
            # While an earlier one is queued, queue this one too: this process reads nothing meanwhile.
            if insist or self.connection.trusted:
                problem = await self.attempt(change)
        finally:
            if problem is not None:
                self.connection.miss(change, reason=problem)
            self.forget(change)
        return problem is None

    async def attempt(self, change: Change, wanted: Wanted | None = None) -> str | None:
        """`send`, and once more if that fails, as on an idle connection. Returns the problem, if any."""
        problem = None
        for _ in range(_TRIES):
            try:
                await self.send(change, wanted)
            except (Away, *OUTAGE) as exc:
                problem = explain(exc)
            else:
                return None
        return problem

    def forget(self, change: Change) -> None:
        """Drop this process's copies and flights of the names."""
        if change.everything:
            self._backplane.forget_here(ALL)
        for part in change.parts(self.keys):
            if part.name:
                self._backplane.forget_here(part.name)

    async def send(self, change: Change, wanted: Wanted | None = None) -> None:
        """
        Invalidate what is named; begin or renew the intent of the change's token, or end it.

        Starts no further page of agents once it is no longer `wanted`, because no part of a renewal
        may follow the end of the write. Raises Away or ResponseError: a part may not have arrived.
        """
        parts = list(change.parts(self.keys))
        size = 1 if self._cluster else max(self.at_once // 2, 1)
        chunks = [parts[start : start + size] for start in range(0, len(parts), size)]
        replies = await all_of(self._run(chunk, change) for chunk in chunks)
        for chunk, reply in zip(chunks, replies, strict=True):
            await self._finish([part for part in chunk if part.index], reply, change, wanted)
        self.forget(change)
        if self._cluster:
            await self._backplane.publish(*(part.name for part in parts if part.name))
        if not change.ttl_ms:
            for agent in change.agents:
                self.ended_here(self.keys.agent(agent))
        if change.everything:
            await self._scan("{*")
            await self._scan("message:{*")

    def _run(self, parts: Sequence[Part], change: Change) -> Awaitable[Any]:
        indexes = [part.index for part in parts if part.index]
        intents = [part.intents for part in parts if part.intents and change.token]
        gone = [key for part in parts for key in part.gone]
        keys = [*indexes, *intents, *gone]
        names = ""
        if not self._cluster:
            keys.append(self.keys.backplane)
            names = "\n".join(part.name for part in parts if part.name)
        args = (
            len(indexes), len(intents), change.token, change.ttl_ms,
            "" if self._cluster else self.keys.prefix + "{", names,
            CACHE_BACKPLANE_EVENTS, int(CACHE_MAX_TTL_S), CACHE_INDEX_MARGIN_MS,
            0 if self._cluster else self.at_once - len(parts), len(gone),
        )  # fmt: skip
        alone = len(keys) == len(gone) == 1
        return self._script.run(self.connection.unguarded, keys, args, alone=alone)

    async def _finish(
        self, indexes: Sequence[Part], reply: Sequence[Any], change: Change, wanted: Wanted | None
    ) -> None:
        """Invalidate what the script left over: forget.lua describes its reply."""
        server, (now_us, agents, lost, left, highest) = self.connection.unguarded, reply
        for agent in agents:
            key = self.keys.agent(agent.decode(errors="replace"))
            self._backplane.forget_here(key)
            if not change.ttl_ms:
                self.ended_here(key)
        for place in left:
            async for page in listed(server, indexes[place - 1].index, highest, self.at_once):
                if wanted is not None and not wanted():
                    return
                await self.send(Change(agents=page, token=change.token, ttl_ms=change.ttl_ms))
        for place in lost:
            await self._forget_unlisted(indexes[place - 1])
        for place in {*lost, *(() if change.ttl_ms else left)}:
            await prune(server, indexes[place - 1].index, now_us, self.at_once)

    async def _forget_unlisted(self, part: Part) -> None:
        """Find by a scan what may belong to an index that overflowed or was evicted."""
        self._counters.index_lost += 1
        owner = _GLOB.sub(r"\\\1", quoted(part.organisation))
        await self._scan(f"{{*}}*@{owner}:*" if part.organisation else "{*")

    async def _scan(self, pattern: str) -> None:
        # Each value and each load under way has a key beside its version, so the scan finds the
        # version of each.
        whole = self.keys.prefix + pattern
        for node in await self.connection.unguarded.nodes():
            cursor: bytes | int = 0
            while cursor != b"0":
                cursor, keys = await node.execute("SCAN", cursor, "MATCH", whole, "COUNT", _PAGE)
                entries = {key[: key.index(b"}") + 1] for key in keys}
                versions = [key + end for key in entries for end in (b"", b":messages")]
                unlinks = [("UNLINK", version) for version in versions]
                for reply in await self.connection.unguarded.execute_many(unlinks):
                    if isinstance(reply, ResponseError):
                        raise reply
        await self._backplane.publish(ALL)
        self._backplane.forget_here(ALL)

    async def delivered(self) -> None:
        """Return when no delivery is under way: each has arrived, or is queued."""
        if self._deliveries:
            await asyncio.wait(self._deliveries)
