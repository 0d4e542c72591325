"""Breaks a master and its replica that Sentinels watch, with passwords: the faults, and what ends each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from cache.connection.pool import open_pool
from cache.connection.shared_scripts import ScriptRedis
from tests.support.breakable import ASK_AGAIN_S, DEADLINE_S, POOL, Place
from tests.support.clusters import Node
from tests.support.wait import eventually
from worker.keys import QUEUE_PREFIX

FAULTS = (
    *("kill", "stop", "hand_over", "promote", "restart"),
    *("lag", "cut", "cut_off", "cut_and_kill"),
)
SERVICE = "mine"
# The Sentinels log in to the servers as this user, and everybody logs in to the Sentinels.
_USER, _USERS_PASSWORD, SENTINEL_PASSWORD = "watcher", "watchers-secret", "sentinels-secret"
_SENTINELS, _QUORUM = 3, 2


class _Configured(Node):
    """A server with a configuration file, which it writes anew when its role changes."""

    def configure(self, *lines: str) -> None:
        path = self.home / "server.conf"
        own = (f"port {self.port}", "bind 127.0.0.1", f"dir {self.home}")
        path.write_text("\n".join([*own, *lines, ""]))

    def words(self) -> list[str]:
        return [str(self.home / "server.conf"), *self.options]

    async def set_config(self, name: str, value: str | int) -> None:
        """
        Configure the server, which a restart must find again.

        Each promotion and demotion writes to the file what was set until then, such as by a fault.
        """
        await super().set_config(name, value)
        await self.ask("CONFIG", "REWRITE")


class WatchedPair(Place):
    """A master with one replica, and three Sentinels."""

    prefix = QUEUE_PREFIX

    def __init__(self, home: Path) -> None:
        self.first, self.second = _Configured(home / "first"), _Configured(home / "second")
        self.pair = (self.first, self.second)
        self.sentinels = [
            _Configured(home / f"sentinel{number}", "--sentinel") for number in range(_SENTINELS)
        ]
        for node in self.sentinels:
            node.client = Redis(
                host="127.0.0.1", port=node.port, password=SENTINEL_PASSWORD, protocol=2
            )

    async def start(self) -> None:
        first = self.first
        user = f"user {_USER} on >{_USERS_PASSWORD} allkeys allchannels +@all"
        common = ['save ""', "appendonly yes", "appendfsync always", user]
        common += ["repl-diskless-sync-delay 0", "min-replicas-max-lag 2"]
        first.configure(*common)
        self.second.configure(*common, f"replicaof 127.0.0.1 {first.port}")
        for node in self.sentinels:
            node.configure(
                f"requirepass {SENTINEL_PASSWORD}",
                f"sentinel sentinel-pass {SENTINEL_PASSWORD}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} {_QUORUM}",
                f"sentinel auth-user {SERVICE} {_USER}",
                f"sentinel auth-pass {SERVICE} {_USERS_PASSWORD}",
                f"sentinel down-after-milliseconds {SERVICE} 1000",
                f"sentinel failover-timeout {SERVICE} 3000",
            )
        for each in (*self.pair, *self.sentinels):
            each.start()
        await self._hurry()

    async def _hurry(self) -> None:
        """
        Let Sentinels look every second, not every ten, at who follows whom.

        An old master that comes back is made a replica after 9 s instead of 22.
        """
        for node in self.sentinels:
            await node.ask("SENTINEL DEBUG", "INFO-PERIOD", "1000")

    async def end(self) -> None:
        for node in (*self.pair, *self.sentinels):
            await node.client.aclose()
            node.kill()

    @property
    def url(self) -> str:
        nodes = ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels)
        return f"redis+sentinel://{nodes}/{SERVICE}/0"

    def client(self) -> AbstractAsyncContextManager[Any]:
        options = replace(POOL, sentinel_password=SENTINEL_PASSWORD)
        return open_pool(self.url, options, name="t", client_class=ScriptRedis)

    async def owner(self) -> Node:
        _, port = await self._sentinel("GET-MASTER-ADDR-BY-NAME")
        return next(node for node in self.pair if node.port == int(port))

    async def _sentinel(self, what: str, *more: str, node: Node | None = None) -> Any:
        async with (node or self.sentinels[0]).client.client() as one:
            await one.connection.send_command("SENTINEL", what, SERVICE, *more)
            return await one.connection.read_response()

    async def whole(self) -> None:
        """Return when the replica follows, and every Sentinel would promote it."""
        await eventually(self._is_whole, deadline_s=DEADLINE_S)

    async def _is_whole(self) -> bool:
        with suppress(RedisError, OSError):
            owner = await self.owner()
            info = await owner.client.info("replication")
            if info["role"] != "master" or not info["connected_slaves"]:
                return False
            if info["slave0"]["state"] != "online":
                return False
            return all([await self._agrees(node, owner) for node in self.sentinels])
        return False

    async def _agrees(self, sentinel: Node, owner: Node) -> bool:
        _, port = await self._sentinel("GET-MASTER-ADDR-BY-NAME", node=sentinel)
        replicas = [_fields(row) for row in await self._sentinel("REPLICAS", node=sentinel)]
        others = [_fields(row) for row in await self._sentinel("SENTINELS", node=sentinel)]
        return (
            int(port) == owner.port
            and [row["flags"] for row in replicas] == ["slave"]
            and replicas[0]["master-link-status"] == "ok"
            and len(others) == _SENTINELS - 1
            # "master_down" stays there after the failover.
            and not any("s_down" in row["flags"] or "disc" in row["flags"] for row in others)
        )

    @asynccontextmanager
    async def _hand_over(self, owner: Node) -> AsyncIterator[None]:
        """The master stops writing until its replica has everything, and follows it."""
        await self._fail_over(owner, "COORDINATED")
        yield

    @asynccontextmanager
    async def _promote(self, owner: Node) -> AsyncIterator[None]:
        """The master is not asked, and goes on writing until it is demoted."""
        await self._fail_over(owner)
        yield

    async def _fail_over(self, owner: Node, *how: str) -> None:
        asked_at = float("-inf")

        async def is_moved() -> bool:
            nonlocal asked_at
            # Sentinels refuse while they think that another failover is under way.
            if time.monotonic() - asked_at > ASK_AGAIN_S:
                with suppress(ResponseError):
                    await self._sentinel("FAILOVER", *how)
                asked_at = time.monotonic()
            return await self.owner() is not owner

        await eventually(is_moved, deadline_s=DEADLINE_S)

    @asynccontextmanager
    async def _restart(self, _owner: Node) -> AsyncIterator[None]:
        for node in (*self.pair, *self.sentinels):
            node.kill()
        for node in (*self.pair, *self.sentinels):
            node.start()
            await node.client.connection_pool.disconnect()
        await self._hurry()
        await self.whole()
        yield

    @asynccontextmanager
    async def _cut_off(self, owner: Node) -> AsyncIterator[None]:
        """Neither the Sentinels nor the replica reach the master, but clients do."""
        await owner.set_config("min-replicas-to-write", 1)
        async with self.cut_from(owner):
            # Without rights: PING is refused, which is no answer to a Sentinel.
            await owner.ask("ACL", "SETUSER", _USER, "-@all")
            await self.owned_by_another_than(owner)
            yield
            await owner.ask("ACL", "SETUSER", _USER, "+@all")
        await owner.set_config("min-replicas-to-write", 0)


def _fields(row: Any) -> dict[str, str]:
    words = [word.decode() for word in row]
    return dict(zip(words[::2], words[1::2], strict=True))


@asynccontextmanager
async def watched_pair(home: Path) -> AsyncIterator[WatchedPair]:
    """Run one, and yield when every Sentinel would promote its replica."""
    pair = WatchedPair(home)
    try:
        await pair.start()
        await pair.whole()
        yield pair
    finally:
        await pair.end()
