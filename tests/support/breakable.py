"""Breaks a master and its replica under load: the faults that a cluster and Sentinels have alike."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError

from cache.connection.pool import PoolOptions
from tests.support.clusters import Node
from tests.support.wait import eventually

# These lose what no replica has, so enqueues wait for one, and the others may be lost.
CONFIRMED = {"cut_off", "cut_and_kill", "promote"}
# These lose what was not replicated yet, so writes that must survive wait for the replica.
ABRUPT = {"kill", "stop", *CONFIRMED}
DEADLINE_S, ASK_AGAIN_S = 60, 7
POOL = PoolOptions(connect_timeout_s=2, socket_timeout_s=5)


class Place(ABC):
    """Where the queue's keys lie: a master and its replica, which may change places."""

    prefix: str
    pair: tuple[Node, Node]

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the queue's clients connect to."""

    @abstractmethod
    def client(self) -> AbstractAsyncContextManager[Any]:
        """A client of the queue, as workers have it."""

    @abstractmethod
    async def owner(self) -> Node:
        """The master, by the account of one that nothing happens to."""

    @abstractmethod
    async def whole(self) -> None:
        """Return when the owner has a replica that is up to date."""

    async def owned_by_another_than(self, node: Node) -> None:
        async def is_moved() -> bool:
            return await self.owner() is not node

        await eventually(is_moved, deadline_s=DEADLINE_S)

    async def replicated(self) -> None:
        """Return when the replica has everything that was written before."""
        # WAIT covers the writes of its own connection, so write once more on that one.
        async with (await self.owner()).client.client() as one:
            await one.set(f"{self.prefix}replicated", "1")
            assert await one.execute_command("WAIT", 1, 1000 * DEADLINE_S) == 1

    @asynccontextmanager
    async def broken(self, fault: str) -> AsyncIterator[None]:
        """Break the servers, and yield when they serve again; then mend them."""
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
        await replica.set_config("masterauth", "wrong")
        await owner.ask("CLIENT", "KILL", "TYPE", "replica")
        await eventually(lambda: _has_no_replica(owner), deadline_s=DEADLINE_S)
        try:
            yield
        finally:
            await replica.set_config("masterauth", "")

    @asynccontextmanager
    async def _cut(self, owner: Node) -> AsyncIterator[None]:
        """The owner refuses writes while its replica is cut off, so that none can be lost."""
        await owner.set_config("min-replicas-to-write", 1)
        async with self.cut_from(owner):
            with pytest.raises(ResponseError, match="NOREPLICAS"):
                await owner.client.set(f"{self.prefix}refused", "1")
        await self.whole()
        await owner.set_config("min-replicas-to-write", 0)
        yield

    @asynccontextmanager
    async def _cut_and_kill(self, owner: Node) -> AsyncIterator[None]:
        """The owner goes on for a while without its replica, and dies."""
        async with self.cut_from(owner):
            at = await self._offset(owner)
            await eventually(lambda: self._has_written(owner, at), deadline_s=DEADLINE_S)
            owner.kill()
            await self.owned_by_another_than(owner)
            yield
        owner.start()

    async def _offset(self, owner: Node) -> int:
        return int((await owner.client.info("replication"))["master_repl_offset"])

    async def _has_written(self, owner: Node, since: int) -> bool:
        return await self._offset(owner) > since + 20_000

    def _other(self, owner: Node) -> Node:
        return next(node for node in self.pair if node is not owner)


async def _has_no_replica(node: Node) -> bool:
    return not (await node.client.info("replication"))["connected_slaves"]
