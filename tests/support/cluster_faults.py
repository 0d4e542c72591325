"""Breaks a running cluster under load: each fault, what ends it, and how the cluster is made whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from redis.crc import key_slot

from cache.connection.pool import open_pool
from cache.connection.shared_scripts import ScriptRedis
from tests.support.breakable import ASK_AGAIN_S, DEADLINE_S, POOL, Place
from tests.support.clusters import Cluster, Node, half_moved
from tests.support.wait import eventually

FAULTS = (
    *("kill", "stop", "hand_over", "migrate", "migrate_at_once", "restart"),
    *("lag", "cut", "cut_off", "cut_and_kill", "join_and_leave"),
)


class SlotOf(Place):
    """The slot of one tag, which the first node owns and its replica follows."""

    def __init__(self, nodes: Cluster) -> None:
        self.nodes = nodes
        first, replica = nodes.nodes[0], nodes.nodes[-1]
        self.pair = (first, replica)
        self.tag = next(tag for n in range(10_000) if nodes.node_of(tag := f"{{q{n}}}") is first)
        self.prefix = f"{self.tag}:"
        self.slot = key_slot(self.tag.encode())

    @property
    def url(self) -> str:
        return self.nodes.url

    def client(self) -> AbstractAsyncContextManager[Any]:
        return open_pool(self.url, POOL, name="t", client_class=ScriptRedis, tag=self.tag)

    async def owner(self) -> Node:
        """The node that owns the slot, by the account of one that nothing happens to."""
        for first, last, (_, port, *_), *_ in await self._ranges():
            if first <= self.slot <= last:
                return next(node for node in self.nodes.nodes if node.port == port)
        raise AssertionError("nobody owns the slot")

    async def _ranges(self) -> Any:
        async with self.nodes.nodes[2].client.client() as one:
            await one.connection.send_command("CLUSTER", "SLOTS")
            return await one.connection.read_response()

    async def whole(self) -> None:
        """Return when the owner has a replica that is up to date."""

        async def is_replicated() -> bool:
            info = await (await self.owner()).client.info("replication")
            return bool(info["role"] == "master" and info["connected_slaves"]) and (
                info["slave0"]["state"] == "online"
            )

        await eventually(is_replicated, deadline_s=DEADLINE_S)
        await self.nodes.agree(len(self.nodes.nodes))

    @asynccontextmanager
    async def _hand_over(self, owner: Node) -> AsyncIterator[None]:
        asked_at = float("-inf")

        async def is_moved() -> bool:
            nonlocal asked_at
            # The replica gives up after 5 s, such as when the others were not heard in time.
            if time.monotonic() - asked_at > ASK_AGAIN_S:
                await self._other(owner).cluster("FAILOVER")
                asked_at = time.monotonic()
            return await self.owner() is not owner

        await eventually(is_moved, deadline_s=DEADLINE_S)
        yield

    @asynccontextmanager
    async def _restart(self, _owner: Node) -> AsyncIterator[None]:
        for node in self.nodes.nodes:
            node.kill()
        for node in self.nodes.nodes:
            node.start()
        await self.nodes.hang_up()
        await self.whole()
        yield

    @asynccontextmanager
    async def _cut_off(self, owner: Node) -> AsyncIterator[None]:
        """The owner is alone in a minority, and clients still reach it: the others elect."""
        assert self.nodes.bus is not None
        await owner.set_config("min-replicas-to-write", 1)
        async with self.cut_from(owner):
            self.nodes.bus.cut_off(self.nodes.nodes.index(owner))
            await self.owned_by_another_than(owner)
            yield
            self.nodes.bus.heal()
        await owner.set_config("min-replicas-to-write", 0)

    @asynccontextmanager
    async def _join_and_leave(self, owner: Node) -> AsyncIterator[None]:
        """A node joins and takes the slot, gives it back, and leaves."""
        async with self.nodes.one_more() as joined:
            await self._move(owner, joined)
            yield
            await self._move(joined, owner)

    @asynccontextmanager
    async def _migrate(self, owner: Node) -> AsyncIterator[None]:
        target = self.nodes.nodes[1]
        await self._move(owner, target)
        yield
        await self._move(target, owner)

    @asynccontextmanager
    async def _migrate_at_once(self, owner: Node) -> AsyncIterator[None]:
        """As Valkey 9 does: the target follows the source as a replica, then takes the slot."""
        target = self.nodes.nodes[1]
        for source, to in ((owner, target), (target, owner)):
            to_id = await to.id()
            await source.cluster("MIGRATESLOTS", "SLOTSRANGE", self.slot, self.slot, "NODE", to_id)
            await self.owned_by_another_than(source)
            if source is owner:
                yield

    async def _move(self, source: Node, target: Node) -> None:
        """The classic way: keys one part after the other, then the slot."""
        async with half_moved(source, target, self.slot):
            while keys := await source.cluster("GETKEYSINSLOT", self.slot, 100):
                to = ("127.0.0.1", target.port, "", 0, 5000)
                await source.ask("MIGRATE", *to, "KEYS", *keys)
            for node in (target, source, self.nodes.nodes[2]):
                await node.cluster("SETSLOT", self.slot, "NODE", await target.id())
