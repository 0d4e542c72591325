"""
Invalidates cached values without reading or storing any, for a process that only writes.

    async with open_invalidator() as invalidator:
        async with invalidator.writing(agents=[agent_id]):
            await session.commit()

It has one connection, and sends nothing while nobody calls it. What it counts is added to the
totals of all processes. `Cache` is one, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from cache.coherence.backplane import Backplane
from cache.coherence.change import EVERYTHING, Change
from cache.coherence.guarded import GuardedConnection
from cache.coherence.intents import Intents, WriteToken
from cache.coherence.invalidation import Invalidation
from cache.connection.connect import connect
from cache.connection.protocol import Away, Connection
from cache.errors import InvalidName
from cache.keys import CacheKeys
from cache.leases import NamedLease
from cache.names import check_agent_id, check_name, checked_agent_ids, checked_names
from cache.options import CacheOptions
from cache.stats import Counters
from cache.totals import Totals

_FIRST_CONNECT_S = 2.0


class Invalidator:
    """
    Invalidates over one server or cluster. Use it as a context manager, in one event loop.

    Args:
        client: a `redis.asyncio.Redis` or `RedisCluster` that does not decode responses. One
            connection of its pool is taken.

    Attributes:
        client: the client that was passed in.
    """

    def __init__(self, client: Any, options: CacheOptions | None = None) -> None:
        self.options = options = options or CacheOptions()
        self.client = client
        self._counters = Counters()
        self._unguarded: Connection = connect(client, options.timeout_s)
        self._connection = GuardedConnection(self._unguarded, self._counters)
        self._keys = CacheKeys(options.prefix)
        self._backplane = Backplane(client, self._connection, self._keys.backplane)
        self._invalidation = Invalidation(
            self._connection, self._backplane, self._keys, self._counters
        )
        self._intents = Intents(self._invalidation, self._counters, options)
        self._totals = Totals(
            self._connection, self._keys.counters, self._counters, every_s=options.totals_interval_s
        )

    async def __aenter__(self) -> Self:
        """Try to connect, for at most two seconds: the server may also come later."""
        if self.options.enabled:
            self._totals.start()
            try:
                async with asyncio.timeout(_FIRST_CONNECT_S):
                    await self._connect()
            except (Away, TimeoutError) as exc:
                self._connection.trip(Away(str(exc) or "not connected in time"))
        return self

    async def _connect(self) -> None:
        await self._unguarded.connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._intents.close()
        await self._invalidation.delivered()
        await self._totals.stop()
        await self._backplane.close()
        await self._connection.close()

    async def settled(self) -> None:
        """Return once the server is reached and every invalidation is delivered."""
        await self._invalidation.delivered()
        await self._connection.settled()

    async def invalidate(
        self,
        *,
        agents: Iterable[str] = (),
        dependencies: Iterable[str] = (),
        organisations: Iterable[str] = (),
        conversations: Iterable[tuple[str, str]] = (),
        messages: Iterable[tuple[str, str]] = (),
    ) -> bool:
        """
        Invalidate all of these in one round trip, after the write has committed.

        After it returns True, no process serves anything older: neither from Redis, nor from a
        loader that read before. (Copies in other processes end within LETTA_CACHE_LOCAL_TTL_S.)
        False means that the server cannot be reached. Then it is queued, this process goes to its
        loaders until it is delivered, for which `settled` waits, and others may serve older values
        until then. A process that dies before the call tells nobody: `writing` does.

        Args:
            conversations: pairs of agent and conversation, whose windows of messages are dropped.
            messages: pairs of scope and id, of messages that are cached by id.
        """
        change = _change(agents, dependencies, organisations, conversations, messages)
        return not self._matters(change) or await self._invalidation.deliver(change)

    async def invalidate_everything(self) -> bool:
        """Invalidate every value and window under this prefix, for all processes. Sessions stay."""
        return not self.options.enabled or await self._invalidation.deliver(EVERYTHING)

    @asynccontextmanager
    async def writing(
        self,
        *,
        agents: Iterable[str] = (),
        dependencies: Iterable[str] = (),
        organisations: Iterable[str] = (),
        conversations: Iterable[tuple[str, str]] = (),
        messages: Iterable[tuple[str, str]] = (),
    ) -> AsyncIterator[WriteToken]:
        """
        `begin_write`, the block, then `end_write`, also if the block fails.

            async with cache.writing(agents=[agent_id]):
                await session.commit()

        Raises:
            CacheUnavailable: see `begin_write`. The block has not run.
        """
        token = await self.begin_write(
            agents=agents,
            dependencies=dependencies,
            organisations=organisations,
            conversations=conversations,
            messages=messages,
        )
        try:
            yield token
        finally:
            await self.end_write(token)

    async def begin_write(
        self,
        *,
        agents: Iterable[str] = (),
        dependencies: Iterable[str] = (),
        organisations: Iterable[str] = (),
        conversations: Iterable[tuple[str, str]] = (),
        messages: Iterable[tuple[str, str]] = (),
    ) -> WriteToken:
        """
        Name what a write is about to change, right before its COMMIT. One round trip.

        Until `end_write`, nobody is served what is named, and nobody stores it. If this process
        dies, that ends by itself after LETTA_CACHE_INTENT_S.

        Raises:
            CacheUnavailable: the server cannot be reached, and LETTA_CACHE_CUT_OFF is `refuse`.
                With `serve`, `token.holds` is False.
        """
        change = _change(agents, dependencies, organisations, conversations, messages)
        return await self._intents.begin(change if self._matters(change) else Change())

    async def end_write(self, token: WriteToken) -> bool:
        """
        End a write, after its COMMIT or ROLLBACK, or an unknown outcome of one.

        True if no process serves anything older from here on: the server has heard of the end, or
        the intent certainly stands until it lapses. False as for `invalidate`.
        """
        return await self._intents.end(token)

    def lease(self, name: str, *, ttl_s: float = 15.0, wait_s: float | None = None) -> NamedLease:
        """
        A lease that one process of the fleet holds at a time, also while caching is disabled.

            async with cache.lease("poll-batches") as lease:
                ...

        It is renewed in the background, and given back after the block. If it is lost, the block is
        canceled, and LeaseLost raised. Every process must use the same `ttl_s` for a name.

        Args:
            ttl_s: another takes over at most this long after its holder has died. Nobody is given
                a lease on a server that started less than this ago, which may have forgotten one.
            wait_s: wait this long while another holds it; None waits without a limit, 0 not at all.

        Raises:
            LeaseHeld: another process has had it for all of `wait_s`. The block has not run.
            CacheUnavailable: the server cannot be reached. The block has not run.
            LeaseLost: it was lost while the block ran.
        """
        return NamedLease(self._connection, self._keys, name, ttl_s=ttl_s, wait_s=wait_s)

    def _matters(self, change: Change) -> bool:
        return self.options.enabled and len(change) > 0


def _change(
    agents: Iterable[str],
    dependencies: Iterable[str],
    organisations: Iterable[str],
    conversations: Iterable[tuple[str, str]],
    messages: Iterable[tuple[str, str]],
) -> Change:
    """All names, checked, each once. Raises InvalidName."""
    pairs = _pairs("conversations", conversations, "agent_id and conversation")
    for agent, conversation in pairs:
        check_agent_id(agent)
        check_name("conversation", conversation)
    named = _pairs("messages", messages, "scope and id")
    for scope, message in named:
        check_name("scope of messages", scope)
        check_name("id of messages", message)
    return Change(
        tuple(dict.fromkeys(checked_agent_ids(agents))),
        tuple(dict.fromkeys(checked_names("dependencies", dependencies))),
        tuple(dict.fromkeys(checked_names("organisations", organisations))),
        tuple(dict.fromkeys(pairs)),
        messages=tuple(dict.fromkeys(named)),
    )


def _pairs(what: str, values: Iterable[tuple[str, str]], parts: str) -> list[tuple[str, str]]:
    pairs = list(values)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InvalidName(f"{what} must be pairs of {parts}")
    return pairs
