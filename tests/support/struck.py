"""
What the chaos run strikes: one server behind a proxy, or a master and its replica.

The latter are behind Sentinels (`--on-sentinel`) or in a cluster (`--on-cluster`). There, the
server's death is a failover, and so is its hanging.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cache.connection.pool import PoolOptions, open_pool
from tests.support.breakable import Place
from tests.support.cluster_faults import SlotOf
from tests.support.clusters import cluster
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.outages import FragileServer, fragile_server
from tests.support.sentinel_faults import SENTINEL_PASSWORD, watched_pair
from worker.keys import QUEUE_PREFIX

CLUSTER = ("--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0")


class OneServer:
    """
    A server with an append-only file, behind a proxy.

    Attributes:
        env: of its workers.
        replicas: how many confirm what is enqueued.
    """

    prefix = QUEUE_PREFIX
    env: ClassVar[dict[str, str]] = {}
    faults: tuple[str, ...] = ("server killed", "server hung", "connections", "replies")
    replicas = 0

    def __init__(self, server: FragileServer, proxy: FaultProxy, rng: random.Random) -> None:
        self.url = proxy.url
        self._server, self._proxy, self._rng = server, proxy, rng

    def client(self) -> AbstractAsyncContextManager[Any]:
        return open_pool(self.url, PoolOptions(retries=1, socket_timeout_s=2), name="chaos")

    async def strike(self, fault: str, noticed: Callable[[], Awaitable[None]]) -> None:
        """Break it and mend it. `noticed` waits until workers have noticed an outage."""
        if fault == "connections":
            self._proxy.reset()
        elif fault == "replies":
            self._proxy.cut_replies(self._rng.randint(1, 5))
        elif fault == "server killed":
            await asyncio.to_thread(self._server.kill)
            await noticed()
            await asyncio.to_thread(self._server.start)
        else:
            self._server.freeze()
            await noticed()
            self._server.thaw()


class Replicated:
    """A master and its replica, as `OneServer`. Each fault but one makes the other one master."""

    env: ClassVar[dict[str, str]] = {"SENTINEL_PASSWORD": SENTINEL_PASSWORD}
    _by: ClassVar[dict[str, str]] = {
        "server killed": "kill",
        "server hung": "stop",
        "handed over": "hand_over",
    }
    faults = (*_by, "connections")
    replicas = 1

    def __init__(self, place: Place) -> None:
        self.url, self.prefix = place.url, place.prefix
        self.client = place.client
        self._place = place

    async def strike(self, fault: str, noticed: Callable[[], Awaitable[None]]) -> None:
        del noticed  # these last until the failover
        if fault == "connections":
            owner = await self._place.owner()
            await owner.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            return
        async with self._place.broken(self._by[fault]):
            pass


@asynccontextmanager
async def struck(
    config: pytest.Config, home: Path, rng: random.Random
) -> AsyncIterator[OneServer | Replicated]:
    """Run what the command line asks for."""
    async with AsyncExitStack() as stack:
        if config.getoption("--on-cluster"):
            nodes = await stack.enter_async_context(cluster(home / "c", *CLUSTER, replica=True))
            yield Replicated(SlotOf(nodes))
        elif config.getoption("--on-sentinel"):
            yield Replicated(await stack.enter_async_context(watched_pair(home / "s")))
        else:
            server = stack.enter_context(fragile_server(home, "--appendfsync", "always"))
            proxy = await stack.enter_async_context(fault_proxy(server.path))
            yield OneServer(server, proxy, rng)
