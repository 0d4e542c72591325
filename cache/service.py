"""
Composes a cache over a client, and opens and closes it.

Most callers use `open_cache` (cache/opening.py). A program that has a client already
uses `async with Cache(client, options)`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from redis.asyncio.cluster import RedisCluster

from cache.agents import AgentStateCache
from cache.coherence.backplane import Backplane
from cache.coherence.entries import Entries
from cache.coherence.era import Eras
from cache.coherence.guarded import GuardedConnection
from cache.coherence.invalidation import Invalidation
from cache.coherence.local import LocalLevel
from cache.coherence.membership import Membership
from cache.coherence.readthrough import ReadThrough
from cache.components import Components
from cache.connection.connect import connect, connect_beside
from cache.connection.protocol import Away, Connection
from cache.encoding.envelope import Envelopes
from cache.keys import CacheKeys
from cache.messages import MessageCache
from cache.options import CacheOptions
from cache.records import Records
from cache.stats import Counters, PerAgent
from cache.totals import Totals

if TYPE_CHECKING:
    from pydantic import BaseModel

_FIRST_CONNECT_S = 2.0
_MEMBER_TIMEOUT_S = 1.0


class Cache:
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
        self.options = options = options or CacheOptions()
        self.client = client
        self._counters = counters = Counters()
        cluster = isinstance(client, RedisCluster)
        self._unguarded: Connection = connect(client, options.timeout_s)
        self._connection = connection = GuardedConnection(self._unguarded, counters)
        keys = CacheKeys(options.prefix)
        envelopes = Envelopes(
            schema_version=options.schema_version,
            compress_min_bytes=options.compress_min_bytes,
            max_value_bytes=options.max_value_bytes,
            keyring=options.keyring,
        )
        eras = Eras(connection, keys)
        entries = Entries(connection, eras, envelopes, options, counters)
        entries.one_slot = not cluster
        self._backplane = backplane = Backplane(client, connection, keys.backplane)
        self._local = LocalLevel(options.local, counters) if options.local.enabled else None
        if self._local is not None:
            self._local.usable = lambda: backplane.caught_up
        self._totals = Totals(
            connection, keys.counters, counters, every_s=options.totals_interval_s
        )
        self._flights = ReadThrough(backplane, options, counters)
        self._membership = Membership(
            lambda: connect_beside(client, _MEMBER_TIMEOUT_S, name="letta-cache-member"),
            keys, lease_s=options.member_lease_s if options.enabled else 0, learn=eras.learn,
        )  # fmt: skip
        invalidation = Invalidation(
            entries, backplane, local=self._local, flights=self._flights,
            membership=self._membership, options=options, counters=counters, cluster=cluster,
        )  # fmt: skip
        self.components = Components(
            options, keys, entries, self._flights, invalidation, backplane, self._local,
            counters, PerAgent(),
        )  # fmt: skip
        self._models = envelopes.models
        self.agents = AgentStateCache(self.components)
        self.messages = MessageCache(self.components, Records(options))

    async def __aenter__(self) -> Self:
        """Try to connect, for at most two seconds each: the server may also come later."""
        if self.options.enabled:
            self._membership.start()
            self._totals.start()
            try:
                async with asyncio.timeout(_FIRST_CONNECT_S):
                    await self._unguarded.connect()
                    if self._local is not None:
                        await self._backplane.listen()
            except (Away, TimeoutError) as exc:
                self._connection.trip(Away(str(exc) or "not connected in time"))
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FIRST_CONNECT_S):
                        await self._membership.joined()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._flights.close()
        await self._totals.stop()
        await self._backplane.close()
        # With undelivered invalidations, the lease must lapse, so that the others notice.
        await self._membership.stop(leave=self._connection.missed == 0)
        await self._connection.close()

    def register(self, *models: type[BaseModel]) -> None:
        """Register pydantic classes, so that stored values of them can be read without `model`."""
        for model in models:
            self._models.add(model)

    async def settled(self) -> None:
        """Return once the server is reached and every invalidation of this cache is delivered."""
        await self._connection.settled()

    async def invalidate_everything(self) -> bool:
        """Invalidate every value and window under this prefix, for all processes. Sessions stay."""
        if not self.options.enabled:
            return True
        return await self.components.invalidation.everything()

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
            "breaker_open": int(self._connection.state != "closed"),
            "trusted": int(self._connection.trusted),
            "invalidations_missed": self._connection.missed,
            "desynchronized": self._unguarded.desynchronized,
            "local_values": 0 if local is None else len(local),
            "local_bytes": 0 if local is None else local.size_bytes,
        }
