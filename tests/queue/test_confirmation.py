"""A confirmed enqueue is on a replica; without replicas it says so, waits no more, and recovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from cache.connection.pool import PoolOptions, open_pool
from cache.connection.shared_scripts import ScriptRedis
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.options import options_of
from tests.support.queues import queue_of
from tests.support.servers import valkey
from tests.support.wait import eventually
from worker import InvalidArgument, JobQueue, NotConfirmed, Priority, call
from worker.cli.commands import main
from worker.keys import QueueKeys
from worker.queue.confirmation import Confirmations
from worker.queue.options import ConfirmOptions
from worker.queue.store import QueueStore, job_body

pytestmark = pytest.mark.integration

# A busy machine may hold a replica up for long: where it is there, calls wait for it. The shorter
# one is for replicas that are not.
PATIENT_S, SHORT_S = 60.0, 0.02
POOL = PoolOptions(connect_timeout_s=10, socket_timeout_s=30)
EVENTS = {"queue.unconfirmed", "queue.confirmed_again"}


class Pair:
    """A master and its replica; both listen on sockets, too."""

    def __init__(self, home: Path, sockets: str) -> None:
        self.paths = (f"{sockets}/master", f"{sockets}/replica")
        quick = ("--repl-diskless-sync-delay", "0", "--repl-diskless-sync", "yes")
        names = ("master", "replica")
        self._servers = [
            valkey(home / name, "--unixsocket", path, *quick)
            for name, path in zip(names, self.paths, strict=True)
        ]
        self.ports: list[int] = []

    def __enter__(self) -> Pair:
        self.ports = [server.__enter__() for server in self._servers]
        return self

    def __exit__(self, *error: Any) -> None:
        for server in self._servers:
            server.__exit__(*error)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        TemporaryDirectory(prefix="pair-") as sockets,  # their paths must be short
        Pair(tmp_path_factory.mktemp("pair"), sockets) as pair,
    ):
        yield pair


class Servers:
    def __init__(self, pair: Pair, master: Any, replica: Any, proxy: FaultProxy) -> None:
        self._port = pair.ports[0]
        self.master, self.replica, self.proxy = master, replica, proxy
        self.replica_path = pair.paths[1]

    async def join(self) -> None:
        await self.master.replicaof("NO", "ONE")
        await self.replica.replicaof("127.0.0.1", self._port)
        await eventually(lambda: self._is_online(self.master), deadline_s=60)

    async def part(self) -> None:
        await self.replica.replicaof("NO", "ONE")
        await eventually(self._is_alone, deadline_s=60)

    async def exchange(self) -> None:
        """Make the replica the master of its master, and lead the clients to it."""
        port = (await self.replica.config_get("port"))["port"]
        await self.master.replicaof("127.0.0.1", port)
        await eventually(lambda: self._is_online(self.replica), deadline_s=60)
        self.proxy.lead_to(self.replica_path)
        self.proxy.reset()
        for _ in range(20):  # meanwhile the clients notice
            await self.replica.ping()

    async def _is_online(self, server: Any) -> bool:
        return "online" in str((await server.info("replication")).get("slave0"))

    async def _is_alone(self) -> bool:
        return not (await self.master.info("replication"))["connected_slaves"]


@pytest.fixture
async def servers(pair: Pair) -> AsyncIterator[Servers]:
    async with (
        open_pool(f"unix://{pair.paths[0]}", POOL, name="master") as master,
        open_pool(f"unix://{pair.paths[1]}", POOL, name="replica") as replica,
        fault_proxy(pair.paths[0]) as proxy,
    ):
        servers = Servers(pair, master, replica, proxy)
        await servers.join()
        yield servers


@pytest.fixture
async def client(servers: Servers) -> AsyncIterator[Any]:
    async with open_pool(servers.proxy.url, POOL, name="t", client_class=ScriptRedis) as client:
        yield client


@asynccontextmanager
async def opened(client: Any, prefix: str, **settings: Any) -> AsyncIterator[JobQueue]:
    settings = {"queue_wait_timeout_s": PATIENT_S, **settings}
    queue = queue_of(client, prefix, options_of(**settings))
    yield queue
    await queue.aclose()


@pytest.fixture
async def queue(client: Any, prefix: str) -> AsyncIterator[JobQueue]:
    async with opened(client, prefix, queue_wait_replicas=1) as queue:
        yield queue


@pytest.fixture
async def hasty(client: Any, prefix: str) -> AsyncIterator[JobQueue]:
    options = {"queue_wait_replicas": 1, "queue_wait_timeout_s": SHORT_S}
    async with opened(client, prefix, **options) as queue:
        yield queue


async def test_a_confirmed_job_is_on_a_replica(
    servers: Servers, queue: JobQueue, prefix: str
) -> None:
    for number in range(20):
        job = await queue.enqueue("f", job_id=f"j{number}")
        assert job.confirmed is True
        assert await servers.replica.exists(f"{prefix}job:j{number}")
    assert (await queue.enqueue("f", job_id="j0")).confirmed is True, "it was stored before"
    assert (await queue.enqueue("f", wait_replicas=0)).confirmed is None
    assert {job.confirmed for job in await queue.enqueue_many([call("f")] * 3)} == {True}
    assert (await queue.jobs.gather([call("f")] * 2, then=call("f"))).confirmed is True


async def test_calls_that_wait_share_one_wait(servers: Servers, queue: JobQueue) -> None:
    await queue.enqueue("f")
    await servers.master.config_resetstat()
    jobs = await asyncio.gather(*(queue.enqueue("f") for _ in range(200)))
    assert all(job.confirmed for job in jobs)
    waits = (await servers.master.info("commandstats"))["cmdstat_wait"]["calls"]
    assert waits <= 100


async def test_the_status_compares_replicas_with_the_setting(servers: Servers) -> None:
    env = {"LETTA_REDIS_URL": servers.proxy.url, "LETTA_QUEUE_WAIT_REPLICAS": "2"}
    for words, told in (
        ("status", "enqueues return unconfirmed"),
        ("status --json", '"online": 1'),
    ):
        done = await asyncio.to_thread(CliRunner().invoke, main, words.split(), env=env)
        assert done.exit_code == 0, done.output
        assert told in done.stdout


@pytest.mark.parametrize("number", [-1, 6, 1.0, True, "1"])
async def test_a_number_of_replicas_is_checked(queue: JobQueue, number: Any) -> None:
    with pytest.raises(InvalidArgument, match="wait_replicas"):
        await queue.enqueue("f", wait_replicas=number)


async def test_without_replicas_calls_return_unconfirmed_and_recover(
    servers: Servers, hasty: JobQueue
) -> None:
    with structlog.testing.capture_logs() as logs:
        await servers.part()
        await servers.master.config_resetstat()
        jobs = [await hasty.enqueue("f") for _ in range(50)]
        assert {job.confirmed for job in jobs} == {False}
        assert [await job.status() for job in jobs[:1]] == ["queued"]
        stats = (await servers.master.info("commandstats"))["cmdstat_wait"]
        assert stats["calls"] < 50, "calls go on waiting for replicas that are not there"
        await servers.join()
        await eventually(lambda: _is_confirmed(hasty), deadline_s=60)
    told = [line for line in logs if line["event"] in EVENTS]
    first, last = told[0], told[-1]
    assert first["event"] == "queue.unconfirmed"
    assert (first["error"], first["replicas"]) == ("0 of 1 replicas answered", 1)
    assert last["event"] == "queue.confirmed_again"
    assert last["unconfirmed"] >= 1
    assert sum(line["event"] == "queue.unconfirmed" for line in told) == 1


async def _is_confirmed(queue: JobQueue) -> bool:
    return (await queue.enqueue("f")).confirmed is True


async def test_required_confirmations_raise_with_what_was_stored(
    servers: Servers, client: Any, prefix: str
) -> None:
    await servers.part()
    options = {"queue_wait_required": True, "queue_wait_timeout_s": SHORT_S}
    async with opened(client, prefix, **options) as queue:
        await queue.enqueue("f")  # asks for no replica
        asked: dict[str, Any] = {"wait_replicas": 1}
        body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
        to: dict[str, Any] = {"provider": "openai", "endpoint": "/v1/chat/completions"}
        stores: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: queue.enqueue("f", job_id="j1", **asked),
            lambda: queue.enqueue_many([call("f", job_id="j2")], **asked),
            lambda: queue.jobs.gather([call("f")], then=call("f", job_id="j3"), **asked),
            lambda: queue.schedule("s", call("f"), every_s=3600, **asked),
            lambda: queue.send_webhook(
                "https://x.example/", {}, event_type="x", webhook_id="w1", **asked
            ),
            lambda: queue.submit_llm_request(body, **to, **asked),
            lambda: queue.submit_llm_request(body, urgent=True, **to, **asked),
            lambda: queue.submit_many([body], **to, **asked),
        )
        ids: list[str] = []
        for store in stores:
            with pytest.raises(NotConfirmed, match="stored") as caught:
                await store()
            ids += caught.value.ids
        assert ids[:5] == ["j1", "j2", "j3", "s", "w1"]
        assert len(ids) == len(stores)
        assert await queue.jobs.get("j1").status() == "queued"
        assert (await queue.delivery("w1")).state == "pending"


async def test_another_server_does_not_confirm(
    servers: Servers, client: Any, queue: JobQueue, prefix: str, valkey_url: str
) -> None:
    assert (await queue.enqueue("f")).confirmed is True
    # The calls go to a third server; the connection for WAIT stays with the first.
    servers.proxy.lead_to(valkey_url.removeprefix("unix://").partition("?")[0])
    await client._connection.close()
    job = await queue.enqueue("f", job_id="elsewhere")
    assert job.confirmed is False
    assert not await servers.master.exists(f"{prefix}job:elsewhere")


async def test_a_failover_behind_a_call_does_not_confirm_it(
    servers: Servers, client: Any, prefix: str
) -> None:
    """The new master lacks the job, and has a replica that confirms everything."""
    keys = QueueKeys(prefix)
    confirmations = Confirmations(client, keys, ConfirmOptions(timeout_s=PATIENT_S))
    jobs = QueueStore(client, keys)

    async def put(job_id: str) -> None:
        body = job_body("f", (), {}, now_ms=0)
        await jobs.put(job_id, body, priority=Priority.DEFAULT, delay_ms=0, due_ms=None)

    async def put_and_lose() -> None:
        await servers.part()
        await put("lost")
        await servers.exchange()

    _, confirmed = await confirmations.of(lambda: put("kept"), 1)
    assert confirmed is True
    _, confirmed = await confirmations.of(put_and_lose, 1)
    assert confirmed is False
    assert not await servers.replica.exists(keys.job("lost"))

    async def is_confirmed_again() -> bool:
        return (await confirmations.of(lambda: put("later"), 1))[1] is True

    await eventually(is_confirmed_again, deadline_s=60)
    assert await servers.replica.exists(keys.job("later"))
    await confirmations.aclose()
