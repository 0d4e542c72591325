"""Dead letters, schedules and cron ticks that somebody changed: the others are served."""

from __future__ import annotations

from typing import Any

import pytest
from arq.cron import cron

from cache.encoding import codec
from tests.support.engine import running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker import Call
from worker.engine import EngineOptions
from worker.keys import EngineKeys, QueueKeys

pytestmark = pytest.mark.integration

OPTIONS = EngineOptions(lease_s=1, poll_s=0.1)
ROW: dict[str, Any] = {"f": "double", "a": [], "k": {}, "p": "default"}
ROW |= {"every": 50, "cron": None}


async def double(ctx: dict[str, Any], n: int = 1) -> int:
    return 2 * n


@pytest.mark.parametrize(
    "fields",
    [
        {"died": "x", "queue": "x", "tries": "x"},
        {"queue": "9"},
        {"queue": "0"},
        {"queue": "inf", "died": "1e300"},
        {"reason": b"\xff", "error": b"\xff", "name": b"\xff"},
        None,
        "another type",
    ],
    ids=str,
)
async def test_an_odd_dead_letter_is_listed_and_can_be_purged(
    client: Any, prefix: str, fields: Any
) -> None:
    queue, keys = queue_of(client, prefix), QueueKeys(prefix)
    await queue.enqueue("gone", job_id="well")
    async with running(client, prefix, [double], options=EngineOptions(park_s=0, poll_s=0.1)):
        await eventually(lambda: queue.dead.get("well"))
    await client.zadd(keys.dead, {"odd": 1})
    if fields == "another type":
        await client.rpush(keys.dead_job("odd"), "x")
    elif fields:
        await client.hset(keys.dead_job("odd"), mapping=fields)
    listed = {letter.id for letter in await queue.dead.list()}
    assert "well" in listed
    stats = await queue.stats()
    assert sum(row["dead"] for row in stats.values()) >= 1
    if fields:
        assert "odd" in listed
        assert await queue.dead.purge("odd") == 1
    assert await queue.dead.retry("well") == 1


@pytest.mark.parametrize(
    ("data", "score"),
    [
        (b"\xc1", 1),
        (codec.encode(5), 1),
        (codec.encode({}), 1),
        (codec.encode({**ROW, "every": 0}), 1),
        (codec.encode({**ROW, "every": -5}), 1),
        (codec.encode({**ROW, "every": "x"}), 1),
        (codec.encode({**ROW, "cron": "x"}), 1),
        (codec.encode({**ROW, "p": 5}), 1),
        (codec.encode({**ROW, "p": ""}), 1),
        (codec.encode({**ROW, "p": "high:"}), 1),
        (codec.encode(ROW), "-inf"),
        (codec.encode(ROW), -1e300),
        (codec.encode(ROW), 1.5),
    ],
)
async def test_an_odd_schedule_stops_no_other(
    client: Any, prefix: str, data: bytes, score: Any
) -> None:
    queue, keys = queue_of(client, prefix), EngineKeys(QueueKeys(prefix))
    for name in ("a-odd", b"\xff-odd"):
        await client.hset(keys.schedule_jobs, name, data)
        await client.zadd(keys.schedules, {name: score})
    await queue.schedule("well", Call("double", (2,)), every_s=0.05)
    async with running(client, prefix, [double], options=OPTIONS) as worker:

        async def twice() -> bool:
            return worker.jobs_complete >= 2

        await eventually(twice)


@pytest.mark.parametrize("seen", [b"x", b"", b"1e400", b"-5", b"9" * 40])
async def test_an_odd_last_tick_stops_no_cron(client: Any, prefix: str, seen: bytes) -> None:
    async def tick(ctx: dict[str, Any]) -> None:
        return None

    keys = EngineKeys(QueueKeys(prefix))
    await client.hset(keys.cron, "cron:tick", seen)
    jobs = [cron(tick, name="cron:tick", second=set(range(60)))]
    async with running(client, prefix, [double], options=OPTIONS, cron_jobs=jobs) as worker:

        async def ran() -> bool:
            return worker.jobs_complete >= 1

        await eventually(ran)


@pytest.mark.parametrize(
    "row",
    [
        b"\xff", b"", codec.encode(7), codec.encode({"f": "double"}),
        codec.encode({**ROW, "p": "x"}), codec.encode({**ROW, "a": 7}),
        codec.encode({**ROW, "every": "x"}),
    ],
)  # fmt: skip
async def test_an_odd_schedule_does_not_hide_the_others(
    client: Any, prefix: str, row: bytes
) -> None:
    queue = queue_of(client, prefix)
    await queue.jobs.schedule("good", Call("double"), every_s=60)
    await client.hset(EngineKeys(QueueKeys(prefix)).schedule_jobs, "odd", row)
    assert [found.id for found in await queue.jobs.schedules()] == ["good"]
