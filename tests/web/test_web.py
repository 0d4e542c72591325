"""/healthz, /readyz and /metrics over real HTTP."""

from __future__ import annotations

import re
import socket
from datetime import UTC, datetime
from typing import Any

import pytest
from arq.worker import func
from prometheus_client.parser import text_string_to_metric_families

from cache.connection.pool import PoolOptions, open_pool
from tests.support.engine import burst, running
from tests.support.queues import queue_of, stores_of
from tests.support.wait import eventually
from tests.support.web import CLOSED, READ_TOKEN, TOKEN, asking, bearer
from worker import Priority
from worker.queue.fleet import WorkerRow
from worker.queue.overview import Overview
from worker.web.address import read_address
from worker.web.readiness import readiness_of

pytestmark = pytest.mark.integration

LABELS = ("task", "queue", "outcome", "state", "kind", "le")


async def quick(ctx: dict[str, Any]) -> None: ...


async def fails(ctx: dict[str, Any]) -> None:
    raise ValueError("as asked")


FUNCTIONS = [func(each, name=each.__name__) for each in (quick, fails)]


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values of each sample -> its value."""
    return {
        (
            sample.name,
            *(sample.labels[name] for name in LABELS if name in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_are_those_of_the_whole_fleet(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for _ in range(3):
        await queue.enqueue("quick", priority=Priority.HIGH)
    await queue.enqueue("fails")
    await burst(client, prefix, FUNCTIONS)
    await queue.enqueue("quick", at=datetime(2024, 1, 1, tzinfo=UTC), priority=Priority.LOW)
    await queue.enqueue("quick", job_id="an-id", delay_s=3600)
    async with asking(queue) as web:
        reply = await web.get("/metrics")
    found = samples(reply.text)

    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert found["letta_job_ends_total", "quick", "high", "completed"] == 3
    assert found["letta_job_ends_total", "fails", "default", "dead"] == 1
    assert found["letta_job_duration_seconds_count", "quick", "high"] == 3
    assert found["letta_job_queue_time_seconds_bucket", "quick", "high", "+Inf"] == 3
    assert found["letta_queue_jobs_due", "low"] == 1
    assert found["letta_queue_oldest_job_age_seconds", "low"] > 3600
    assert found["letta_jobs", "deferred"] == 1
    assert found["letta_jobs", "dead"] == 1
    assert found["letta_workers", "working"] == 0
    assert "an-id" not in reply.text
    labels = {label for each in re.findall(r"\{(.*?)\}", reply.text) for label in each.split(",")}
    names = {label.partition("=")[0] for label in labels}
    assert names == set(LABELS)


async def test_buckets_count_up_and_agree_with_their_count(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("quick")
    await burst(client, prefix, FUNCTIONS)
    async with asking(queue) as web:
        found = samples((await web.get("/metrics")).text)
    for name in ("letta_job_duration_seconds", "letta_job_queue_time_seconds"):
        buckets = [(key[-1], value) for key, value in found.items() if key[0] == f"{name}_bucket"]
        counts = [value for _, value in buckets]
        assert counts == sorted(counts)
        assert len(buckets) == 20
        assert counts[-1] == found[f"{name}_count", "quick", "default"] == 1
        limits = [float(limit) for limit, _ in buckets]
        assert limits == sorted(limits)


async def test_metrics_ask_for_the_token_and_probes_do_not(client: Any, prefix: str) -> None:
    async with asking(queue_of(client, prefix), access=CLOSED) as web:
        for header in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}):
            refused = await web.get("/metrics", headers=header)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        odd = await web.get("/metrics", headers={b"authorization": b"Bearer \xff"})
        assert odd.status_code == 401
        for token in (TOKEN, READ_TOKEN):
            assert (await web.get("/metrics", headers=bearer(token))).status_code == 200
        assert (await web.get("/healthz")).text == "ok\n"
        assert (await web.get("/readyz")).json() == {"ready": True, "problems": []}
        assert (await web.get("/nothing")).status_code == 404
        assert (await web.post("/metrics")).status_code == 405


async def test_a_process_without_its_server_is_alive_and_not_ready(tmp_path: Any) -> None:
    options = PoolOptions(retries=0, connect_timeout_s=1)
    async with (
        open_pool(f"unix://{tmp_path}/nothing", options, name="test") as client,
        asking(queue_of(client, "t:"), host=socket.gethostname()) as web,
    ):
        assert (await web.get("/healthz")).status_code == 200
        ready, metrics = await web.get("/readyz"), await web.get("/metrics")
    assert (ready.status_code, metrics.status_code) == (503, 503)
    assert ready.json()["ready"] is False
    assert "server" in ready.json()["problems"][0]


async def test_a_probe_without_a_token_learns_no_error_of_the_server(tmp_path: Any) -> None:
    options = PoolOptions(retries=0, connect_timeout_s=1)
    async with (
        open_pool(f"unix://{tmp_path}/nothing", options, name="test") as client,
        asking(queue_of(client, "t:"), access=CLOSED) as web,
    ):
        blind, told = await web.get("/readyz"), await web.get("/readyz", headers=bearer())
        assert (blind.status_code, told.status_code) == (503, 503)
        expected = ["the queue's server: cannot be used; ask with a token for the reason"]
        assert blind.json() == {"ready": False, "problems": expected}
        assert str(tmp_path) in told.json()["problems"][0]


async def test_a_page_of_another_name_learns_no_error_of_the_server(tmp_path: Any) -> None:
    options = PoolOptions(retries=0, connect_timeout_s=1)
    async with (
        open_pool(f"unix://{tmp_path}/nothing", options, name="test") as client,
        asking(queue_of(client, "t:")) as web,
    ):
        answer = await web.get("/readyz", headers={"host": "evil.example"})
        assert str(tmp_path) not in answer.text


async def test_a_process_beside_workers_is_ready_while_they_work(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    async with asking(queue, host=socket.gethostname()) as web:
        host = socket.gethostname()
        before = (await web.get("/readyz")).json()
        assert before == {"ready": False, "problems": [f"no worker of {host} is alive"]}
        async with running(client, prefix, FUNCTIONS):

            async def is_ready() -> bool:
                return (await web.get("/readyz")).status_code == 200

            await eventually(is_ready)
            found = samples((await web.get("/metrics")).text)
            assert found["letta_workers", "working"] == 1
            assert found[("letta_worker_slots",)] == 10
            assert found[("letta_workers_memory_bytes",)] > 1_000_000
            assert found[("letta_workers_cpu_cores",)] >= 0
            assert found[("letta_worker_loop_lag_seconds",)] >= 0


# -- decisions --------------------------------------------------------------------


def worker_row(host: str, *, draining: bool = False) -> WorkerRow:
    now = datetime.now(UTC)
    return WorkerRow(
        id="w",
        host=host,
        pid=1,
        started_at=now,
        running=0,
        max_jobs=10,
        completed=0,
        failed=0,
        retried=0,
        draining=draining,
    )


def overview(lease_late_s: float = 0.0) -> Overview:
    return Overview({}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, lease_late_s)


def test_readiness_names_every_problem() -> None:
    drains = [worker_row("here", draining=True), worker_row("elsewhere")]
    one_works = [*drains, worker_row("here")]
    assert readiness_of(overview(), one_works, "here").is_ready
    assert readiness_of(overview(9), one_works, "here").is_ready
    assert readiness_of(overview(99), [], None).is_ready
    assert readiness_of(overview(), drains, "here").problems == ["the workers of here drain"]
    late = readiness_of(overview(60), [], "here").problems
    assert late == [
        "no worker of here is alive",
        "a lease has lapsed for 60 s: no worker claims",
    ]


@pytest.mark.parametrize(
    ("text", "host", "port", "is_loopback"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80, True),
        ("127.9.9.9:0", "127.9.9.9", 0, True),
        ("localhost:1", "localhost", 1, True),
        ("[::1]:8484", "::1", 8484, True),
        ("0.0.0.0:8484", "0.0.0.0", 8484, False),
        ("[::]:8484", "::", 8484, False),
        ("10.0.0.1:8484", "10.0.0.1", 8484, False),
        ("localhost.example:1", "localhost.example", 1, False),
    ],
)
def test_an_address_is_read_and_known_as_loopback(
    text: str, host: str, port: int, is_loopback: bool
) -> None:
    address = read_address(text)
    assert (address.host, address.port, address.is_loopback) == (host, port, is_loopback)
    assert str(address) == text


@pytest.mark.parametrize("text", ["", ":80", "80", "h:", "h:65536", "::1:80", "h:80/x", "a b:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="accepted: host:port"):
        read_address(text)


async def test_a_hostile_function_name_stays_inside_its_label(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    names = ['a"} 1\nfake_metric{x="', "b\\", "c\x1b[2J", "d\ud7ff"]
    for name in names:
        await queue.enqueue("quick", job_id=name.encode().hex())
    functions = [func(quick, name="quick")]
    await burst(client, prefix, functions)
    keys = stores_of(queue).keys
    for name in names:
        await client.zadd(keys.history.index, {f"default:{name}": 10**6})
    await client.zadd(
        keys.history.index, {b"default:\xff": 10**6, b"default:\xfe": 10**6, b"odd": 1}
    )
    async with asking(queue) as web:
        answer = await web.get("/metrics")
        assert answer.status_code == 200
        families = list(text_string_to_metric_families(answer.text))
        shown = {
            sample.labels["task"]
            for each in families
            for sample in each.samples
            if "task" in sample.labels
        }
        assert {*names, "quick"} <= shown
        assert "fake_metric" not in {family.name for family in families}


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": "application/openmetrics-text; version=x; escaping=?"},
        {"accept": "application/openmetrics-text;version=1.0.0;version=2;;=,,"},
        {"accept": "\xff;q=nan"},
        {"accept": "a" * 30_000},
        {"host": "evil.example\x7f"},
        {"host": ""},
        {"authorization": "Bearer \xff"},
        {"x-forwarded-for": "1, 2", "transfer-encoding": "chunked"},
    ],
)
async def test_odd_headers_and_paths_are_answered(
    client: Any, prefix: str, headers: dict[str, str]
) -> None:
    async with asking(queue_of(client, prefix)) as web:
        sent = {name: value.encode("latin-1") for name, value in headers.items()}
        for path in ("/metrics", "/healthz", "//healthz", "/..%2fmetrics", "/%ff%00"):
            answer = await web.get(path, headers=sent)  # type: ignore[arg-type]
            assert answer.status_code in {200, 400, 403, 404, 431}, (path, answer.status_code)
        assert (await web.get("/healthz")).status_code == 200
