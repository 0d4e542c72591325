"""Lists of jobs and workers, as an operator sees them, while jobs come, run and end."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import pytest

from tests.support.jobs import FUNCTIONS
from tests.support.queues import open_queue, queue_of, stores_of
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import InvalidArgument, JobQueue, NotFound, Priority
from worker.engine import EngineOptions
from worker.engine.poll import Poll
from worker.keys import EngineKeys
from worker.queue.filters import JobFilter
from worker.queue.rows import JobRow

pytestmark = pytest.mark.integration


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix)


async def all_rows(queue: JobQueue, limit: int, **filters: Any) -> list[JobRow]:
    """Follow the cursors to the end."""
    found: list[JobRow] = []
    cursor = ""
    while True:
        page = await queue.jobs.list(limit=limit, cursor=cursor, **filters)
        assert len(page.jobs) <= limit
        found, cursor = [*found, *page.jobs], page.cursor
        if not cursor:
            return found


def poll_of(queue: JobQueue) -> Poll:
    stores = stores_of(queue)
    return Poll(stores.client, EngineKeys(stores.keys), EngineOptions(), worker_id="w")


async def test_waiting_jobs_are_listed_by_priority_and_due_time(queue: JobQueue) -> None:
    await queue.enqueue("b", job_id="later", delay_s=60)
    await queue.enqueue("a", "secret", job_id="now")
    await queue.enqueue("a", job_id="low", priority=Priority.LOW)
    await queue.enqueue("a", job_id="first", priority=Priority.CRITICAL)

    page = await queue.jobs.list()

    assert page.cursor == ""
    assert [(row.id, row.function, row.state.value) for row in page.jobs] == [
        ("first", "a", "queued"),
        ("now", "a", "queued"),
        ("later", "b", "deferred"),
        ("low", "a", "queued"),
    ]
    later = page.jobs[2]
    assert later.enqueued_at is not None
    age = later.due_at - later.enqueued_at
    # The two times are read one after the other.
    assert timedelta(seconds=59) < age < timedelta(seconds=90)
    assert "secret" not in repr(page)
    assert await queue.jobs.describe("later") == later


async def test_filters_combine_and_reach_every_job(queue: JobQueue) -> None:
    for number in range(30):
        await queue.enqueue(
            "even" if number % 2 == 0 else "odd",
            job_id=f"j{number:02}",
            delay_s=60 if number % 3 == 0 else 0,
            priority=Priority.HIGH if number < 20 else Priority.DEFAULT,
        )
    found = await all_rows(queue, 2, state="deferred", function="even", priority=Priority.HIGH)
    assert [row.id for row in found] == ["j00", "j06", "j12", "j18"]
    assert len(await all_rows(queue, 7, state="queued")) == 20
    assert await all_rows(queue, 7, function="neither") == []


async def test_pages_miss_and_repeat_no_job_while_others_leave(queue: JobQueue) -> None:
    keys, client = stores_of(queue).keys, stores_of(queue).client
    due = datetime(2100, 1, 1, tzinfo=UTC)
    ids = [f"j{number:04}" for number in range(900)]
    # Many of one due time: only their ids order them.
    for id_ in ids:
        await queue.enqueue("a", job_id=id_, at=due)
    seen: list[str] = []
    cursor = ""
    while True:
        page = await queue.jobs.list(limit=250, cursor=cursor)
        seen += [row.id for row in page.jobs]
        if not page.cursor:
            break
        # The cursor's own job, and one before it, leave; one comes in front.
        for gone in (seen[-1], seen[0]):
            await client.zrem(keys.queue(), gone)
        await queue.enqueue("a", job_id=f"a{len(seen)}", at=due)
        cursor = page.cursor
    assert seen == ids


async def test_running_jobs_name_their_worker(private_valkey_url: str) -> None:
    settings = quick_settings(
        private_valkey_url, worker_functions=FUNCTIONS, worker_shutdown_grace_s=0
    )
    async with open_queue(settings) as queue, running_worker(settings):
        await queue.enqueue("wait_forever", job_id="runs", priority=Priority.HIGH)
        parked = await queue.enqueue("nobody_knows")

        # A job that no worker knows is listed as running until the worker has parked it.
        async def both() -> list[JobRow]:
            running = (await queue.jobs.list("running")).jobs
            waiting = (await queue.jobs.list("parked")).jobs
            ids = ([row.id for row in running], [row.id for row in waiting])
            return [*running, *waiting] if ids == (["runs"], [parked.id]) else []

        running, waiting = await eventually(both)
        assert (running.function, running.priority) == ("wait_forever", Priority.HIGH)
        assert running.enqueued_at is not None
        assert abs(running.due_at - running.enqueued_at) < timedelta(seconds=5)
        assert waiting.worker == ""

        async def live() -> Any:
            return await queue.jobs.workers()

        (row,) = await eventually(live)
        assert (row.id, row.max_jobs, row.draining) == (running.worker, 32, False)
        assert row.heartbeat_at is not None
        assert row.started_at is not None
        assert abs(datetime.now(UTC) - row.started_at) < timedelta(seconds=60)
        assert abs(datetime.now(UTC) - row.heartbeat_at) < timedelta(seconds=60)
        assert row.memory_bytes is not None
        assert row.memory_bytes > 1_000_000
        assert (row.version, row.cpu is None, row.lag_s is None) == (
            version("letta-redis"),
            False,
            False,
        )


async def test_heartbeats_of_other_releases_and_none_at_all_are_shown(queue: JobQueue) -> None:
    keys, client = stores_of(queue).keys, stores_of(queue).client
    counts = dict.fromkeys(("running", "max_jobs", "completed", "failed", "retried"), 1)
    old = {"worker_id": "old", "host": "a", "pid": 1, "started": 1, "draining": False, **counts}
    odd = {"version": "9" * 999, "memory_bytes": -1, "cpu": "x", "lag_s": float("nan"), "at": [1]}
    beats = {"old": old, "odd": {**old, **odd, "worker_id": "odd"}}
    now = datetime.now(UTC).replace(microsecond=0)
    seen = now.timestamp() * 1000
    await client.zadd(keys.workers, {"old": 1, "odd": 2, "b:c:7:x": seen, "odd id": seen - 1})
    for name, beat in beats.items():
        await client.set(keys.worker(name), json.dumps(beat))

    fleet = await queue.jobs.fleet()

    for row in fleet.workers:
        assert (row.memory_bytes, row.cpu, row.lag_s, row.completed) == (None, None, None, 1)
        assert len(row.version) < 100
    assert [row.id for row in fleet.workers] == ["old", "odd"]
    assert [(row.host, row.pid, row.heartbeat_at) for row in fleet.lapsed] == [
        ("b:c", 7, now),
        ("odd id", 0, now - timedelta(milliseconds=1)),
    ]
    assert all(row.is_lapsed for row in fleet.lapsed)


async def test_damaged_jobs_hide_no_others(queue: JobQueue) -> None:
    keys, client = stores_of(queue).keys, stores_of(queue).client
    await queue.enqueue("a", job_id="whole", delay_s=60)
    await client.zadd(keys.queue(), {b"\xff\x00": 1, "wrong-type": 2, "no-map": 3, "gone": 4})
    await client.set(keys.job("").encode() + b"\xff\x00", b"\xc1")
    await client.lpush(keys.job("wrong-type"), "x")
    await client.set(keys.job("no-map"), b"\x01")
    await client.set(keys.retry("no-map"), "many")

    rows = await all_rows(queue, 1)

    assert [(row.id, row.function) for row in rows] == [
        ("\ufffd\x00", ""),
        ("no-map", ""),
        ("whole", "a"),
    ]


async def test_what_is_no_filter_is_refused_by_name(queue: JobQueue) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"state": "dead"}, "accepted: queued, deferred, running, parked"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "9:1.0:a"}, "cursor"),
        ({"cursor": "0:nan:a"}, "cursor"),
        ({"priority": "urgent"}, "priority"),
    ]
    for arguments, named in refused:
        with pytest.raises(InvalidArgument, match=named):
            await queue.jobs.list(**arguments)
    with pytest.raises(NotFound, match="ended"):
        await queue.jobs.describe("ended")


async def test_paused_jobs_are_listed_before_and_after_a_worker_met_them(queue: JobQueue) -> None:
    await queue.pause(function="a")
    await queue.pause(priority=Priority.LOW)
    for number in range(4):
        await queue.enqueue("a", job_id=f"a{number}")
    await queue.enqueue("b", job_id="b")
    await queue.enqueue("a", job_id="later", delay_s=3600)
    await queue.enqueue("b", job_id="low", priority=Priority.LOW)
    before = await all_rows(queue, 2, state="paused")
    assert [row.id for row in before] == ["a0", "a1", "a2", "a3", "low"]
    low = (await queue.stats())["low"]
    assert (low["queued"], low["paused"]) == (0, 1)

    (claim,) = (await poll_of(queue).run([], 9)).claims
    assert claim.job_id == "b"

    assert await all_rows(queue, 2, state="paused") == before
    assert await queue.jobs.describe("a0") == before[0]
    assert [row.id for row in await all_rows(queue, 2, state="deferred")] == ["later"]
    assert await all_rows(queue, 2, state="queued") == []
    counts = (await queue.stats())["default"]
    assert [counts[name] for name in ("queued", "deferred", "paused", "running")] == [0, 1, 4, 1]
    overview = await queue.jobs.overview()
    assert (overview.paused, overview.deferred, overview.running) == (4, 1, 1)


@pytest.mark.parametrize("limit", [0, 1001, -1, True, "5"])
async def test_a_page_has_one_to_a_thousand_jobs(client: Any, prefix: str, limit: Any) -> None:
    queue = queue_of(client, prefix)
    with pytest.raises(InvalidArgument, match="limit"):
        await queue.jobs.list("queued", limit=limit)
    with pytest.raises(InvalidArgument, match="limit"):
        await queue.jobs.search(None, JobFilter(), limit=limit)


async def test_a_page_looks_at_ten_thousand_jobs_and_goes_on_behind_them(queue: JobQueue) -> None:
    stores = stores_of(queue)
    await stores.client.zadd(stores.keys.queue(), {f"other-{n}": 1 for n in range(10_600)})

    first = await queue.jobs.search("queued", JobFilter(function="rare"))
    assert first.jobs == []
    assert 10_000 <= first.looked <= 10_200

    rest = await queue.jobs.search("queued", JobFilter(function="rare"), cursor=first.cursor)
    assert (first.looked + rest.looked, rest.cursor) == (10_600, "")
