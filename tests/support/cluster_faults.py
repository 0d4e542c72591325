"""Breaks a running cluster under load: each fault, what ends it, and how the cluster is made whole."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import ResponseError

from tests.support.clusters import Cluster, Node, half_moved
from tests.support.wait import eventually

FAULTS = (
    *("kill", "stop", "hand_over", "migrate", "migrate_at_once", "restart"),
    *("lag", "cut", "cut_off", "cut_and_kill", "join_and_leave"),
)
# These lose what no replica has, so enqueues wait for one, and the others may be lost.
CONFIRMED = {"cut_off", "cut_and_kill"}
# These lose what was not replicated yet, so writes that must survive wait for the replica.
ABRUPT = {"kill", "stop", *CONFIRMED}
_DEADLINE_S, _ASK_AGAIN_S = 60, 7


class SlotOf:
    """The slot of one tag, which the first node owns and its replica follows."""

    def __init__(self, nodes: Cluster) -> None:
        self.nodes = nodes
        first, replica = nodes.nodes[0], nodes.nodes[-1]
        self.pair = (first, replica)
        self.tag = next(tag for n in range(10_000) if nodes.node_of(tag := f"{{q{n}}}") is first)
        self.slot = key_slot(self.tag.encode())

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

    async def owned_by_another_than(self, node: Node) -> None:
        async def is_moved() -> bool:
            return await self.owner() is not node

        await eventually(is_moved, deadline_s=_DEADLINE_S)

    async def whole(self) -> None:
        """Return when the owner has a replica that is up to date."""

        async def is_replicated() -> bool:
            info = await (await self.owner()).client.info("replication")
            return bool(info["role"] == "master" and info["connected_slaves"]) and (
                info["slave0"]["state"] == "online"
            )

        await eventually(is_replicated, deadline_s=_DEADLINE_S)
        await self.nodes.agree(len(self.nodes.nodes))

    async def replicated(self) -> None:
        """Return when the replica has everything that was written before."""
        # WAIT covers the writes of its own connection, so write once more on that one.
        async with (await self.owner()).client.client() as one:
            await one.set(f"{self.tag}:replicated", "1")
            assert await one.execute_command("WAIT", 1, 1000 * _DEADLINE_S) == 1

    @asynccontextmanager
    async def broken(self, fault: str) -> AsyncIterator[None]:
        """Break the cluster, and yield when the slot is served again; then mend the cluster."""
        async with getattr(self, f"_{fault}")(await self.owner()):
            yield
        await self.whole()

    @asynccontextmanager
    async def _kill(self, owner: Node) -> AsyncIterator[None]:
        owner.kill()
        await self.owned_by_another_than(owner)
        yield
        owner.start()

    @asynccontextmanager
    async def _stop(self, owner: Node) -> AsyncIterator[None]:
        owner.signal(signal.SIGSTOP)
        try:
            await self.owned_by_another_than(owner)
            yield
        finally:
            owner.signal(signal.SIGCONT)

    @asynccontextmanager
    async def _hand_over(self, owner: Node) -> AsyncIterator[None]:
        asked_at = float("-inf")

        async def is_moved() -> bool:
            nonlocal asked_at
            # The replica gives up after 5 s, such as when the others were not heard in time.
            if time.monotonic() - asked_at > _ASK_AGAIN_S:
                await self._other(owner).cluster("FAILOVER")
                asked_at = time.monotonic()
            return await self.owner() is not owner

        await eventually(is_moved, deadline_s=_DEADLINE_S)
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
    async def _lag(self, owner: Node) -> AsyncIterator[None]:
        """The replica stands still for a while; the owner goes on without it."""
        replica = self._other(owner)
        replica.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            replica.signal(signal.SIGCONT)

    @asynccontextmanager
    async def cut_from(self, owner: Node) -> AsyncIterator[None]:
        """Within the block, the owner has no replica: it cannot log in."""
        replica = self._other(owner)
        await replica.client.config_set("masterauth", "wrong")
        await owner.ask("CLIENT", "KILL", "TYPE", "replica")
        await eventually(lambda: _has_no_replica(owner), deadline_s=_DEADLINE_S)
        try:
            yield
        finally:
            await replica.client.config_set("masterauth", "")

    @asynccontextmanager
    async def _cut(self, owner: Node) -> AsyncIterator[None]:
        """The owner refuses writes while its replica is cut off, so that none can be lost."""
        await owner.client.config_set("min-replicas-to-write", 1)
        async with self.cut_from(owner):
            with pytest.raises(ResponseError, match="NOREPLICAS"):
                await owner.client.set(f"{self.tag}:refused", "1")
        await self.whole()
        await owner.client.config_set("min-replicas-to-write", 0)
        yield

    @asynccontextmanager
    async def _cut_off(self, owner: Node) -> AsyncIterator[None]:
        """The owner is alone in a minority, and clients still reach it: the others elect."""
        assert self.nodes.bus is not None
        await owner.client.config_set("min-replicas-to-write", 1)
        async with self.cut_from(owner):
            self.nodes.bus.cut_off(self.nodes.nodes.index(owner))
            await self.owned_by_another_than(owner)
            yield
            self.nodes.bus.heal()
        await owner.client.config_set("min-replicas-to-write", 0)

    @asynccontextmanager
    async def _cut_and_kill(self, owner: Node) -> AsyncIterator[None]:
        """The owner goes on for a while without its replica, and dies."""
        async with self.cut_from(owner):
            at = await self._offset(owner)
            await eventually(lambda: self._has_written(owner, at), deadline_s=_DEADLINE_S)
            owner.kill()
            await self.owned_by_another_than(owner)
            yield
        owner.start()

    async def _offset(self, owner: Node) -> int:
        return int((await owner.client.info("replication"))["master_repl_offset"])

    async def _has_written(self, owner: Node, since: int) -> bool:
        return await self._offset(owner) > since + 20_000

    @asynccontextmanager
    async def _join_and_leave(self, owner: Node) -> AsyncIterator[None]:
        """A node joins and takes the slot, gives it back, and leaves."""
        async with self.nodes.one_more() as joined:
            await self._move(owner, joined)
            yield
            await self._move(joined, owner)

    def _other(self, owner: Node) -> Node:
        return next(node for node in self.pair if node is not owner)

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


async def _has_no_replica(node: Node) -> bool:
    return not (await node.client.info("replication"))["connected_slaves"]
