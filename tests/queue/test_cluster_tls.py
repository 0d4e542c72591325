"""The queue on a cluster behind TLS and a password: every node is verified, the next owner too."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trustme
from redis.crc import key_slot

from cache.connection.pool import OUTAGE, PoolOptions, open_pool
from settings import Settings
from tests.support.servers import tls_in_front, valkey
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import open_queue
from worker.keys import QUEUE_TAG

pytestmark = pytest.mark.integration

PASSWORD = "the-clusters-own"
POOL = PoolOptions(connect_timeout_s=10, socket_timeout_s=30, retries=0)


@dataclass
class Sealed:
    """Two nodes that clients reach by TLS, with a password; tests reach them by sockets."""

    nodes: list[Any]
    ports: list[int]
    ca_file: Path

    def settings(self, **changes: Any) -> Settings:
        options = {
            "redis_url": f"rediss+cluster://127.0.0.1:{self.ports[0]}",
            "redis_password": PASSWORD,
            "redis_ca_file": self.ca_file,
            "worker_functions": "tests.support.jobs:add",
        }
        chosen: dict[str, Any] = {**options, **changes}
        return quick_settings(chosen.pop("redis_url"), **chosen)

    async def move(self, to: int) -> None:
        """Move the queue's slot, which must be empty, by the nodes' own word."""
        id_ = (await self.nodes[to].execute_command("CLUSTER", "MYID")).decode()
        for node in (self.nodes[to], *self.nodes):
            slot = key_slot(QUEUE_TAG.encode())
            await node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", id_)


@pytest.fixture
async def sealed(tmp_path: Path) -> AsyncIterator[Sealed]:
    async with sealed_cluster(tmp_path) as cluster:
        yield cluster


@asynccontextmanager
async def sealed_cluster(home: Path) -> AsyncIterator[Sealed]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(home / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with AsyncExitStack() as stack:
        sockets = stack.enter_context(TemporaryDirectory(prefix="tls-"))
        cluster, plain = Sealed([], [], home / "ca.pem"), []
        for number in range(2):
            path = f"{sockets}/{number}"
            port = await stack.enter_async_context(tls_in_front(path, context))
            # Its own port is for the test's look at whether it runs; clients get the other one.
            options: tuple[str, ...] = ("--unixsocket", path, "--cluster-announce-port", str(port))
            options += ("--cluster-enabled", "yes", "--requirepass", PASSWORD)
            plain.append(stack.enter_context(valkey(home / str(number), *options)))
            opened = open_pool(f"unix://:{PASSWORD}@{path}", POOL, name="t")
            cluster.nodes.append(await stack.enter_async_context(opened))
            cluster.ports.append(port)
        await _form(cluster.nodes)
        yield cluster


async def _form(nodes: list[Any]) -> None:
    await nodes[0].execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    await nodes[1].execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
    found = await nodes[0].config_get("*port")
    await nodes[1].execute_command(
        "CLUSTER", "MEET", "127.0.0.1", found["port"], found["cluster-port"]
    )

    async def is_whole() -> bool:
        infos = [await node.execute_command("CLUSTER", "INFO") for node in nodes]
        return all(b"state:ok" in info and b"known_nodes:2" in info for info in infos)

    await eventually(is_whole, deadline_s=60)


async def test_jobs_run_over_tls_and_follow_the_slot(sealed: Sealed) -> None:
    settings = sealed.settings()
    async with open_queue(settings) as queue:
        async with running_worker(settings):
            assert await (await queue.enqueue("add", 1, b=2)).result(timeout_s=60) == 3
        await sealed.nodes[0].flushall()
        await sealed.move(to=1)
        async with running_worker(settings):
            assert await (await queue.enqueue("add", 2, b=2)).result(timeout_s=60) == 4
    assert await sealed.nodes[1].keys("{arq}:result:*")


async def test_a_cluster_that_is_not_trusted_gets_no_password(
    sealed: Sealed, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    wrong: tuple[dict[str, Any], ...] = (
        {"redis_ca_file": tmp_path / "stranger.pem"},
        {"redis_password": "another"},
        {"redis_password": None},
        {"redis_url": f"redis+cluster://127.0.0.1:{sealed.ports[0]}", "redis_ca_file": None},
    )
    for changes in wrong:
        async with open_queue(sealed.settings(redis_retries=0, **changes)) as queue:
            with pytest.raises(OUTAGE):
                await queue.enqueue("add", 1)
