"""A pool of a cluster's queue: what one node refuses is sent again, to the node that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from cache.connection.cluster import ClusterConnection
from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.owner import OwnerPool, rest
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.protocol import Away
from cache.connection.shared_scripts import ScriptRedis
from cache.connection.siblings import sibling, url_of
from tests.support.servers import raw_server

pytestmark = pytest.mark.faults

ELSEWHERE = ["MOVED 1 {other}", "CLUSTERDOWN down", "MASTERDOWN away", "READONLY a replica"]
LATER = ["TRYAGAIN half moved", "ASK 1 {other}", "NOREPLICAS too few"]


class FakeNode:
    """Says that it owns every slot, or `owner` does, and refuses commands as often as `errors` says."""

    def __init__(self) -> None:
        self.port = 0
        self.owner = self
        self.is_stopped = False
        self.errors: list[str] = []
        self.answered: list[bytes] = []
        self.dials = self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dials += 1
        parser = hiredis.Reader()
        while data := await reader.read(65_536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                self.asked += command[:2] == [b"CLUSTER", b"SLOTS"]
                if not self.is_stopped:
                    writer.write(self.reply(command).encode())
            await writer.drain()

    def reply(self, command: list[bytes]) -> str:
        if command[:2] == [b"CLUSTER", b"SLOTS"]:
            return f"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:{self.owner.port}\r\n"
        if command[0] in {b"CLUSTER", b"INFO"}:
            return "$16\r\ncluster_state:ok\r\n"
        if command[0] in {b"GET", b"EVALSHA"}:
            if self.errors:
                return f"-{self.errors.pop(0)}\r\n"
            self.answered.append(command[0])
        return "+OK\r\n"


@asynccontextmanager
async def fake_nodes(count: int) -> AsyncIterator[list[FakeNode]]:
    nodes = [FakeNode() for _ in range(count)]
    async with raw_server(nodes[0].serve) as first, raw_server(nodes[-1].serve) as last:
        nodes[0].port, nodes[-1].port = first, last
        yield nodes


def client_of(node: FakeNode) -> Any:
    url = f"redis+cluster://127.0.0.1:{node.port}"
    return open_pool(url, PoolOptions(), name="t", client_class=ScriptRedis, tag="{t}")


@pytest.mark.parametrize("error", [*ELSEWHERE, *LATER], ids=lambda text: text.split()[0])
async def test_a_command_that_a_node_does_not_serve_is_sent_again(error: str) -> None:
    async with fake_nodes(2) as (node, other), client_of(node) as client:
        text = error.format(other=f"127.0.0.1:{other.port}")
        node.errors = [text]
        assert await client.evalsha("sha", 1, "{t}:a") == b"OK"
        serving = other if error.startswith("MOVED") else node
        assert serving.answered == [b"EVALSHA"]
        serving.errors = [] if serving is other else [text]
        assert await client.get("{t}:a") == b"OK"
        assert serving.answered == [b"EVALSHA", b"GET"]


@pytest.mark.parametrize("error", ["CLUSTERDOWN down", "LOADING data", "MASTERDOWN away"])
async def test_the_cache_asks_for_the_map_again_after(error: str) -> None:
    """Its own connection takes such an error for an outage, after which another node may serve."""
    async with fake_nodes(1) as (node,):
        url = f"redis+cluster://127.0.0.1:{node.port}"
        async with open_pool(url, PoolOptions(), name="t") as client:
            connection = ClusterConnection(client, timeout_s=60)
            await connection.execute("GET", "a")
            asked, node.errors = node.asked, [error]
            with pytest.raises(Away, match=error):
                await connection.execute("GET", "a")
            assert await connection.execute("GET", "a") == b"OK"
            assert node.asked == asked + 1
            await connection.close()


async def test_a_slot_that_is_half_moved_costs_no_connection() -> None:
    async with fake_nodes(1) as (node,), client_of(node) as client:
        await client.evalsha("sha", 1, "{t}:a")
        dials = node.dials
        node.errors = ["TRYAGAIN half moved"] * 2
        assert await client.evalsha("sha", 1, "{t}:a") == b"OK"
        assert node.dials == dials


async def test_all_connections_follow_a_slot_that_has_moved() -> None:
    async with fake_nodes(2) as (node, other), client_of(node) as client:
        await client.get("{t}:a")
        await client.evalsha("sha", 1, "{t}:a")
        node.errors = [f"MOVED 1 127.0.0.1:{other.port}"]
        await client.get("{t}:a")
        await client.evalsha("sha", 1, "{t}:a")
        assert node.answered == [b"GET", b"EVALSHA"]
        assert other.answered == [b"GET", b"EVALSHA"]


async def test_a_node_that_falls_silent_is_left_before_the_timeout() -> None:
    async with fake_nodes(2) as (node, other):
        other.owner = node
        url = f"redis+cluster://127.0.0.1:{node.port},127.0.0.1:{other.port}"
        options = PoolOptions(socket_timeout_s=300)
        async with open_pool(url, options, name="t", client_class=ScriptRedis, tag="{t}") as client:
            await client.evalsha("sha", 1, "{t}:a")
            node.is_stopped, other.owner = True, other
            async with asyncio.timeout(100):
                assert await client.evalsha("sha", 1, "{t}:a") == b"OK"
            assert (node.answered, other.answered) == ([b"EVALSHA"], [b"EVALSHA"])


async def test_a_new_client_waits_once_for_nodes_that_are_silent() -> None:
    async with fake_nodes(1) as (node,):
        node.is_stopped = True
        url = f"redis+cluster://127.0.0.1:{node.port}"
        options = PoolOptions(socket_timeout_s=0.2)
        async with open_pool(url, options, name="t", tag="{t}") as client:
            with pytest.raises(RedisConnectionError, match="Timeout reading"):
                await client.get("{t}:a")
        assert node.dials == 1


async def test_a_call_that_blocks_at_the_server_raises_no_suspicion() -> None:
    async with fake_nodes(1) as (node,), client_of(node) as client:
        connection = MultiplexedConnection(client, timeout_s=60, blocks=True)
        await connection.connect()
        asked, node.is_stopped = node.asked, True
        call = asyncio.ensure_future(connection.execute("BZPOPMIN", "{t}:a", 20))
        # Longer than silence is borne of other calls.
        done, _ = await asyncio.wait([call], timeout=1.2)
        assert not done
        assert node.asked == asked
        await connection.close()
        with pytest.raises(Away):
            await call


async def test_a_sibling_has_a_pool_of_the_same_slot() -> None:
    async with fake_nodes(1) as (node,), client_of(node) as client:
        await client.get("{t}:a")
        other = sibling(client, name="second")
        assert isinstance(other.connection_pool, OwnerPool)
        assert url_of(other) == f"redis+cluster://127.0.0.1:{node.port}"
        assert await other.get("{t}:a") == b"OK"
        await other.aclose(close_connection_pool=True)


async def test_a_client_of_one_server_rests_as_long_as_it_is_told() -> None:
    class Client:
        connection_pool = None

    async with asyncio.timeout(20):
        await rest(Client(), 0.001)
