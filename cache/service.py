"""
Composes a cache over a client, and opens and closes it.

Most callers use `open_cache` (cache/opening.py). A program that has a client already
uses `async with Cache(client, options)`.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from cache.agents import AgentStateCache
from cache.coherence.backplane import ALL
from cache.coherence.dependencies import DependencyIndex
from cache.coherence.entries import Entries
from cache.coherence.local import LocalLevel
from cache.coherence.readthrough import ReadThrough
from cache.coherence.refills import Refills
from cache.components import Components
from cache.encoding.envelope import Envelopes
from cache.invalidator import Invalidator
from cache.messages import MessageCache
from cache.options import CacheOptions
from cache.records import Records
from cache.room import Room
from cache.stats import PerAgent

if TYPE_CHECKING:
    from pydantic import BaseModel


class Cache(Invalidator):
    """
    A cache over one server or cluster. Use it as a context manager, in one event loop.

    Args:
        client: a `redis.asyncio.Redis` or `RedisCluster` that does not decode responses. The
            cache takes two connections of its pool: one for commands, one for the backplane.

    Attributes:
        agents: states, blocks, contexts and sessions of agents.
        messages: the newest messages of conversations.
        client: the client that was passed in.
    """

    def __init__(self, client: Any, options: CacheOptions | None = None) -> None:
        super().__init__(client, options)
        options, counters, backplane = self.options, self._counters, self._backplane
        envelopes = Envelopes(
            schema_version=options.schema_version,
            compress_min_bytes=options.compress_min_bytes,
            max_value_bytes=options.max_value_bytes,
            keyring=options.keyring,
        )
        entries = Entries(self._connection, envelopes, options, counters)
        self._flights = ReadThrough(entries, backplane, options, counters)
        self._local = LocalLevel(options.local, counters) if options.local.enabled else None
        if self._local is not None:
            self._local.usable = lambda: backplane.caught_up
        self._refills = Refills(self._flights, counters)
        self._invalidation.ended_here = self._refills.invalidated
        backplane.forget_here = self._forget
        index = DependencyIndex(self._connection, options.max_dependents)
        self.components = Components(
            options, self._keys, entries, self._flights, self._invalidation, self._intents, index,
            backplane, self._local, counters, PerAgent(), self._refills,
            Room(self._connection, options.max_memory_share, counters),
        )  # fmt: skip
        self._models = envelopes.models
        self.agents = AgentStateCache(self.components)
        self.messages = MessageCache(self.components, Records(options))

    async def _connect(self) -> None:
        await super()._connect()
        if self._local is not None:
            await self._backplane.listen()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._refills.close()
        await self._flights.close()
        await super().__aexit__(kind, error, traceback)

    def _forget(self, name: str) -> None:
        """Drop the copies and flights in this process that an event of the backplane names."""
        if name == ALL:
            self._flights.drop()
            if self._local is not None:
                self._local.flush()
        else:
            self._flights.drop(name + "\0")
            if self._local is not None:
                self._local.invalidate(name)

    def register(self, *models: type[BaseModel]) -> None:
        """Register pydantic classes, so that stored values of them can be read without `model`."""
        for model in models:
            self._models.add(model)

    async def totals(self) -> dict[str, int]:
        """
        Counters of all processes on this server. Another's last seconds may be missing.

        Raises:
            RedisError: the server cannot be reached.
        """
        return await self._totals.read()

    def stats(self) -> dict[str, int]:
        """
        Counters of this process since the cache was opened, and current gauges (docs/caching.md).

        Gauges: `breaker_open` and `trusted` (0 or 1), `invalidations_missed`, `local_values`,
        `local_bytes`.
        """
        local = self._local
        return {
            **self._counters.as_dict(),
            "breaker_open": int(not self._connection.trusted),
            "trusted": int(self._connection.trusted),
            "invalidations_missed": self._connection.missed,
            "desynchronized": self._unguarded.desynchronized,
            "local_values": 0 if local is None else len(local),
            "local_bytes": 0 if local is None else local.size_bytes,
        }
