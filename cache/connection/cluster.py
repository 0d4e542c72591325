"""
Routes commands to the nodes of a cluster, over one `MultiplexedConnection` per node.

The commands of one event-loop tick leave in one write per node, and the run of each
node is known. The slot map is fetched at its first use, and again after a MOVED, a
lost connection or a silent node.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from redis.crc import key_slot
from redis.exceptions import ResponseError

from cache.connection.incarnation import UNKNOWN
from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.outbox import Outbox
from cache.connection.protocol import Away, Connection, Decode, Ended
from cache.connection.siblings import node_pool
from cache.connection.tasks import all_of, end, joined, keep

Address = tuple[str, int]

_HOPS = 4
# Errors of a wrong node, or of one that cannot answer now. TRYAGAIN (a slot is being moved) is
# not one of them: it is a refusal, and counts as a miss.
_PASSING = {"MOVED", "ASK", "CLUSTERDOWN", "LOADING", "MASTERDOWN"}
_SCRIPTS = {"EVAL", "EVALSHA"}
_KEY_OF_SCRIPT = 3
# Most keys whose node is remembered; with more, all are forgotten.
_MOST_ROUTES = 16_384


class ClusterConnection:
    """Sends a command to the node of its first key, and a command without a key to all nodes."""

    spread = True

    def __init__(self, client: Any, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._connections: dict[Address, MultiplexedConnection] = {}
        self._starts: list[int] = []  # the first slot of each range
        self._owners: list[Address] = []  # the master of each range
        self._routes: dict[str, MultiplexedConnection] = {}  # by key: computing a slot is slow
        self._stale = True
        self._learning: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[Any]] = set()
        self._outbox = Outbox(patient=self._awaits_replies)
        self._desynchronized = 0  # sum over connections that were closed

    @property
    def desynchronized(self) -> int:
        return self._desynchronized + sum(
            connection.desynchronized for connection in self._connections.values()
        )

    def _awaits_replies(self) -> bool:
        return any(connection.awaits_replies for connection in self._connections.values())

    def incarnation_of(self, key: str) -> bytes:
        """The run of the key's node on the current map, if known."""
        connection = self._routes.get(key) or self._route(key)
        return UNKNOWN.digest if connection is None else connection.incarnation_of()

    def doubt(self, key: str) -> None:
        connection = self._routes.get(key) or self._route(key)
        if connection is not None:
            connection.doubt(key)

    async def connect(self) -> None:
        """Connect to all nodes. Raises Away: no map was found, or a node on it cannot be reached."""
        await self._learn()
        if not self._connections:
            raise Ended("no node is connected")
        await all_of([connection.connect() for connection in self._connections.values()])

    async def execute(self, *args: Any) -> Any:
        """As `MultiplexedConnection.execute`."""
        if len(args) == 1:
            replies = await all_of([node.execute(*args) for node in await self.nodes()])
            if not replies:
                raise Ended("no node is connected")
            return replies[0]
        key = args[_KEY_OF_SCRIPT if args[0] in _SCRIPTS else 1]
        address: Address | None = None
        asking = False
        for _ in range(_HOPS):
            await self._learn_in_time()
            connection = self._node(address or self._owner(key))
            try:
                return await self._ask(connection, args, asking=asking)
            except ResponseError as exc:
                word, _, rest = str(exc).partition(" ")
                if word not in _PASSING:
                    raise
                address, asking = self._redirect(word, rest, connection), word == "ASK"
                if address is None:
                    raise Away(str(exc)) from None
            except Away:
                self._stale = True  # a replica may have taken over
                raise
        self._stale = True
        raise Away(f"the cluster redirected the command {_HOPS} times")

    def node_of(self, key: str) -> Connection:
        """
        The connection to a key's node; this object while the map is unknown or may be old.

        A node's `fetch` returns redirections; this object's `fetch` follows them.
        """
        if self._stale:
            return self
        return self._routes.get(key) or self._route(key) or self

    async def fetch(self, args: tuple[Any, ...], decode: Decode) -> Any:
        first, last = await self.execute(*args)
        return first, None if last is None else decode(last, 0, len(last))

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """As `MultiplexedConnection.execute_many`, with one write per node."""
        replies = await asyncio.gather(
            *(self.execute(*command) for command in commands), return_exceptions=True
        )
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, ResponseError):
                raise reply
        return replies

    async def evalsha(self, sha: str, count: int, *args: Any) -> Any:
        return await self.execute("EVALSHA", sha, count, *args)

    async def eval(self, source: str, count: int, *args: Any) -> Any:
        return await self.execute("EVAL", source, count, *args)

    async def _ask(
        self, connection: MultiplexedConnection, args: Sequence[Any], *, asking: bool
    ) -> Any:
        if not asking:
            return await connection.execute(*args)
        reply = (await connection.execute_many((("ASKING",), args)))[1]
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    def _redirect(self, word: str, rest: str, connection: MultiplexedConnection) -> Address | None:
        """The node that a MOVED or ASK names; None if the cluster cannot answer now."""
        if word not in {"MOVED", "ASK"}:
            self._stale = True
            return None
        host, _, port = rest.split(" ")[1].rpartition(":")
        if not host:  # the host of the node that answered
            host = next(
                (h for (h, _), known in self._connections.items() if known is connection), ""
            )
        self._stale = self._stale or word == "MOVED"
        return host, int(port)

    def _owner(self, key: str | bytes) -> Address | None:
        if not self._starts:
            return None
        slot = key_slot(key if isinstance(key, bytes) else key.encode())
        return self._owners[bisect_right(self._starts, slot) - 1]

    def _route(self, key: str) -> MultiplexedConnection | None:
        """Find the connection to a key's node on the current map, and remember it."""
        owner = self._owner(key)
        connection = self._connections.get(owner) if owner else None
        if connection is not None:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            self._routes[key] = connection
        return connection

    def _node(self, address: Address | None) -> MultiplexedConnection:
        if address is None:
            raise Away("the cluster's slot map is unknown")
        connection = self._connections.get(address)
        if connection is None:
            pool = SimpleNamespace(connection_pool=node_pool(self._client, *address))
            connection = self._connections[address] = MultiplexedConnection(
                pool, timeout_s=self._timeout_s, follows_run=True, outbox=self._outbox
            )
        return connection

    async def _learn_in_time(self) -> None:
        if not self._stale:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._learn()
        except TimeoutError:
            raise Away(f"no slot map of the cluster within {self._timeout_s} s") from None

    async def _learn(self) -> None:
        """Fetch the slot map. Concurrent calls share one attempt."""
        if self._learning is None:
            self._learning = asyncio.ensure_future(self._learn_from_any())
        task = self._learning
        try:
            await joined(task)
        finally:
            if task.done() and self._learning is task:
                self._learning = None

    async def _learn_from_any(self) -> None:
        startup = self._client.nodes_manager.startup_nodes.values()
        seeds = [(node.host, int(node.port)) for node in startup]
        reason = "the cluster has no nodes"
        for address in dict.fromkeys([*self._connections, *seeds]):
            try:
                ranges = await self._node(address).execute("CLUSTER", "SLOTS")
            except (Away, ResponseError) as exc:
                reason = str(exc)
                continue
            if ranges:
                await self._adopt(ranges, address)
                return
            reason = "no node of the cluster has slots"
        raise Away(reason)

    async def _adopt(self, ranges: list[Any], asked: Address) -> None:
        """Switch to a new slot map: close connections to former masters, open those to new ones."""
        ranges.sort(key=lambda found: found[0])
        self._starts = [found[0] for found in ranges]
        self._owners = [
            ((found[2][0] or asked[0].encode()).decode(), found[2][1]) for found in ranges
        ]
        self._stale = False
        self._routes.clear()
        for address in [a for a in self._connections if a not in self._owners]:
            connection = self._connections.pop(address)
            self._desynchronized += connection.desynchronized
            keep(self._endings, connection.retire())
        # Values are checked against their node's run, which is known only after connecting.
        await asyncio.gather(
            *(self._node(address).connect() for address in dict.fromkeys(self._owners)),
            return_exceptions=True,
        )

    async def nodes(self) -> Sequence[Connection]:
        """The connections to the nodes on the map. Raises Away."""
        await self._learn_in_time()
        return list(self._connections.values())

    async def close(self) -> None:
        if self._learning is not None:
            await end(self._learning)
        await asyncio.gather(*(connection.retire() for connection in self._connections.values()))
        await asyncio.gather(*self._endings, return_exceptions=True)
