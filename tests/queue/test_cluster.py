"""The queue, its worker and its commands on a cluster: all keys in one slot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from redis.crc import key_slot

from cache import open_cache
from cache.connection import embedded
from cache.errors import UnsupportedRedisURL
from settings import Settings
from tests.support.clusters import Cluster, shared_cluster
from tests.support.servers import raw_server
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import InvalidArgument, JobStatus, call, open_queue
from worker.app.service import await_server, build_worker_settings
from worker.cli.commands import main
from worker.keys import QUEUE_TAG
from worker.web.access import Access
from worker.web.app import build_app
from worker.web.site import Site

pytestmark = pytest.mark.integration

# The most that the setting allows; a busy machine takes long to connect.
PATIENT_S = 10


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with shared_cluster(tmp_path_factory.mktemp("queue")) as nodes:
        yield nodes


@pytest.fixture
async def settings(nodes: Cluster) -> AsyncIterator[Settings]:
    for node in nodes.nodes:
        await node.client.flushall()
    names = ("add", "explode", "context")
    functions = ",".join(f"tests.support.jobs:{name}" for name in names)
    yield quick_settings(
        nodes.url, worker_functions=functions, worker_max_tries=1, cache_timeout_s=PATIENT_S
    )
    await nodes.hang_up()


async def keys_of(nodes: Cluster) -> set[str]:
    return {key.decode() for node in nodes.nodes for key in await node.client.keys("*")}


async def test_every_feature_of_the_queue_uses_one_slot(nodes: Cluster, settings: Settings) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    async with (
        raw_server(accept) as port,
        open_queue(settings) as queue,
        running_worker(settings),
    ):
        added = await queue.enqueue("add", 1, b=2)
        many = await queue.enqueue_many([call("add", n) for n in range(5)])
        failed = await queue.enqueue("explode", unique="u")
        await queue.schedule("every-hour", call("add", 1), every_s=3600)
        sent = await queue.send_webhook(f"http://127.0.0.1:{port}/", {"a": 1}, event_type="x")
        submitted = await queue.submit_llm_request(
            {"model": "m", "messages": [{"role": "user", "content": "a"}]},
            provider="openai",
            endpoint="/v1/chat/completions",
        )
        assert await added.result(timeout_s=60) == 3
        assert [await job.result(timeout_s=60) for job in many] == list(range(5))
        await eventually(lambda: _has_status(failed, JobStatus.COMPLETE), deadline_s=60)
        await eventually(lambda: _is_delivered(queue, sent), deadline_s=60)
        assert [letter.id for letter in await queue.dead.list()] == [failed.id]
        assert await queue.llm.cancel(submitted)
        slots = {key_slot(key.encode()) for key in await keys_of(nodes)}
        assert slots == {key_slot(QUEUE_TAG.encode())}


async def test_the_commands_and_metrics_read_a_cluster(settings: Settings) -> None:
    async with open_queue(settings) as queue, running_worker(settings):
        job = await queue.enqueue("add", 1)
        assert await job.result(timeout_s=60) == 1
        for command in ("status", "health", "dead list", "jobs list", "workers", "metrics"):
            done = await asyncio.to_thread(_letta, f"{command} --json", settings.redis_url)
            assert done.exit_code == 0, (command, done.output)
            assert json.loads(done.stdout) is not None
        transport = httpx.ASGITransport(build_app(Site(queue, Access())))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get("/metrics")
            listed = await client.get("/api/jobs")
            trail = await client.get("/api/audit")
        assert answer.status_code == 200
        assert "add" in answer.text
        assert (listed.status_code, trail.status_code) == (200, 200)


async def test_nothing_of_stock_arq_runs_on_a_cluster(nodes: Cluster, settings: Settings) -> None:
    with pytest.raises(UnsupportedRedisURL, match="letta-workers health"):
        await_server(settings, once=True)
    arq = build_worker_settings(settings).redis_pool  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgument, match="open_queue"):
        await arq.enqueue_job("add", 1)
    await arq.aclose(close_connection_pool=True)
    async with running_worker(settings), open_queue(settings) as queue:
        assert await (await queue.enqueue("add", 1)).result(timeout_s=60) == 1
        owner = nodes.node_of(QUEUE_TAG)
        await eventually(lambda: _exists(owner.client, f"{QUEUE_TAG}:workers"))
        clients = await owner.client.client_list()
        assert not [each for each in clients if "t" in each["flags"]], "a client tracks keys"


async def test_queue_and_cache_share_a_cluster(settings: Settings) -> None:
    async with open_queue(settings) as queue, open_cache(settings) as cache:
        assert await cache.agents.set("a", 1)
        assert await queue.enqueue("add", 1)
        assert await cache.agents.get("a") == 1


def _letta(command: str, url: str) -> Any:
    words = command.split()
    words += ["--any"] if words[0] == "health" else []
    return CliRunner().invoke(main, words, env={"LETTA_REDIS_URL": url})


async def _has_status(job: Any, status: JobStatus) -> bool:
    return bool(await job.status() == status)


async def _is_delivered(queue: Any, id_: str) -> bool:
    found = await queue.delivery(id_)
    return bool(found.state == "delivered")


async def _exists(client: Any, key: str) -> bool:
    return bool(await client.exists(key))


async def test_an_embedded_cluster_runs_jobs_and_ends_with_its_last_user() -> None:
    own = quick_settings(
        "embedded+cluster://",
        worker_functions="tests.support.jobs:add",
        cache_timeout_s=PATIENT_S,
    )
    async with open_queue(own) as queue, running_worker(own), open_cache(own) as cache:
        assert await (await queue.enqueue("add", 1, b=2)).result(timeout_s=60) == 3
        assert await cache.agents.set("a", 1)
        server = embedded.running["embedded+cluster://"]
        assert server.process is not None
    embedded.release("embedded+cluster://")  # the worker's settings keep one use until the exit
    assert server.process.poll() is not None
