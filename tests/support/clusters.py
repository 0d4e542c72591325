"""Runs a real cluster of three primaries and an optional replica, which can be killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot

from cache.connection.embedded import server_binary
from tests.support.bus import Bus
from tests.support.servers import answers, free_port
from tests.support.wait import eventually, eventually_sync

SLOTS = 16384
PRIMARIES = 3


class Node:
    """One server with an append-only file: acknowledged writes survive a kill."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self.options = options  # of all nodes
        self.binary, self.tls = str(server_binary()), False
        self._own: tuple[str, ...] = ()
        self.port = free_port()
        self.bus_port = free_port()  # by default it is the port + 10,000, which may be none
        self.announced_bus_port = self.bus_port
        self._process: subprocess.Popen[bytes] | None = None
        self.client = Redis(host="127.0.0.1", port=self.port, protocol=2)
        home.mkdir(parents=True)

    def words(self) -> list[str]:
        """The server's command line."""
        words = ["--port", str(self.port), "--cluster-port", str(self.bus_port)]
        words += ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
        words += ["--bind", "127.0.0.1", "--dir", str(self.home), "--save", ""]
        words += ["--appendonly", "yes", "--appendfsync", "always", *self.options, *self._own]
        return words

    def start(self) -> None:
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, *self.words()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        eventually_sync(lambda: answers(self.port, tls=self.tls))

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    async def ask(self, *words: Any) -> Any:
        return await self.client.execute_command(*words)

    async def set_config(self, name: str, value: str | int) -> None:
        """Configure the running server."""
        await self.client.config_set(name, value)

    async def cluster(self, *words: Any) -> Any:
        return await self.ask("CLUSTER", *words)

    async def id(self) -> str:
        return str(_text(await self.cluster("MYID")))

    async def meet(self, other: Node) -> None:
        await self.cluster("MEET", "127.0.0.1", other.port, other.announced_bus_port)

    def join(self, bus: Bus, number: int) -> None:
        """Reach the other nodes through a bus that can be cut; before the start."""
        options = bus.join(number, self.bus_port)
        self._own = tuple(options)
        self.announced_bus_port = int(options[1])


class Cluster:
    def __init__(self, nodes: list[Node], bus: Bus | None = None) -> None:
        self.nodes = nodes
        self.bus = bus

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def node_of(self, key: str) -> Node:
        """Return the node of a key, by the initial slots."""
        slot: int = key_slot(key.encode())
        return self.nodes[slot * PRIMARIES // SLOTS]

    def agents_on(self, node: Node, count: int, prefix: str = "lc:") -> list[str]:
        """Return agents whose keys are on a node."""
        names = (f"a{number}" for number in range(10_000))
        found = [name for name in names if self.node_of(f"{prefix}{{{name}}}") is node]
        return found[:count]

    async def agree(self, count: int) -> None:
        """Return when every node knows all nodes and all slots."""

        async def agreed() -> bool:
            infos = [_text(await node.cluster("INFO")) for node in self.nodes]
            return all(
                "cluster_state:ok" in info and f"cluster_known_nodes:{count}" in info
                for info in map(_joined, infos)
            )

        await eventually(agreed, deadline_s=30)

    @asynccontextmanager
    async def one_more(self) -> AsyncIterator[Node]:
        """Within the block, the cluster has one more node, without slots."""
        home = self.nodes[0].home.parent
        # Without its last slot, it would become a replica at once.
        stays = ("--cluster-allow-replica-migration", "no")
        node = Node(home / f"joined-{free_port()}", *self.nodes[0].options, *stays)
        if self.bus is not None:
            node.join(self.bus, len(self.nodes))
        try:
            node.start()
            await node.meet(self.nodes[0])
            await Cluster([*self.nodes, node]).agree(len(self.nodes) + 1)
            yield node
            left = await node.id()
            await node.cluster("RESET")
            for other in self.nodes:
                await other.cluster("FORGET", left)
            await self.agree(len(self.nodes))
        finally:
            await node.client.aclose()
            node.kill()

    async def hang_up(self) -> None:
        """Close the clients' connections; they connect again at their next command, in any loop."""
        for node in self.nodes:
            await node.client.connection_pool.disconnect()


@contextmanager
def shared_cluster(
    home: Path, *options: str, replica: bool = False, bus: Bus | None = None
) -> Iterator[Cluster]:
    """Run a cluster for several tests, each with an event loop of its own."""
    with asyncio.Runner() as runner:
        opened = cluster(home, *options, replica=replica, bus=bus)
        whole = runner.run(opened.__aenter__())
        try:
            runner.run(whole.hang_up())
            yield whole
        finally:
            runner.run(opened.__aexit__(None, None, None))


@asynccontextmanager
async def half_moved(source: Node, target: Node, slot: int) -> AsyncIterator[None]:
    """Within the block, every second key of the slot has been moved to the target."""
    source_id, target_id = await source.id(), await target.id()
    await target.cluster("SETSLOT", slot, "IMPORTING", source_id)
    await source.cluster("SETSLOT", slot, "MIGRATING", target_id)
    try:
        keys = sorted(await source.cluster("GETKEYSINSLOT", slot, 1000))[::2]
        if keys:
            to = ("127.0.0.1", target.port, "", 0, 5000)
            await source.ask("MIGRATE", *to, "KEYS", *keys)
        yield
    finally:
        await target.cluster("SETSLOT", slot, "STABLE")
        await source.cluster("SETSLOT", slot, "STABLE")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _joined(info: Any) -> str:
    return info if isinstance(info, str) else "\n".join(f"{k}:{v}" for k, v in info.items())


@asynccontextmanager
async def cluster(
    home: Path, *options: str, replica: bool = False, bus: Bus | None = None
) -> AsyncIterator[Cluster]:
    """
    Run a cluster. The first node has the first third of the slots, and the replica is its own.

    `options`: of the servers' command line. `bus`: what the nodes reach each other through.
    """
    nodes = [Node(home / str(number), *options) for number in range(PRIMARIES + replica)]
    for number, node in enumerate(nodes if bus is not None else []):
        node.join(bus, number)  # type: ignore[arg-type]
    try:
        for node in nodes:
            node.start()
        for number, node in enumerate(nodes[:PRIMARIES]):
            # The same division as in Cluster.node_of.
            first = -(-SLOTS * number // PRIMARIES)
            last = -(-SLOTS * (number + 1) // PRIMARIES) - 1
            await node.cluster("ADDSLOTSRANGE", first, last)
            await node.cluster("SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            await node.meet(nodes[0])
        whole = Cluster(nodes, bus)
        await whole.agree(len(nodes))
        if replica:
            await nodes[-1].cluster("REPLICATE", await nodes[0].id())

            async def linked() -> bool:
                info = await nodes[-1].client.info("replication")
                return bool(info.get("master_link_status") == "up")

            await eventually(linked, deadline_s=30)
        yield whole
    finally:
        for node in nodes:
            await node.client.aclose()
            node.kill()
        await asyncio.sleep(0)
