"""Cron jobs on a real server: over a change of the clock, next to a bad one, after a set clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import structlog
from arq.cron import CronJob, cron
from arq.worker import func

from cache.encoding import codec
from tests.support.engine import burst
from tests.support.queues import queue_of
from worker import Priority, call
from worker.engine.cron import CronRunner
from worker.engine.cron_expression import cron_job
from worker.engine.schedules import ScheduleRunner
from worker.keys import EngineKeys, QueueKeys

pytestmark = pytest.mark.integration

HOUR_MS = 3_600_000
NEW_YORK = ZoneInfo("America/New_York")


async def job(ctx: dict[str, Any]) -> None: ...


class Clock:
    """The server's clock as the runner sees it, Unix ms."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def runner(
    client: Any, prefix: str, jobs: list[CronJob], clock: Clock, encode: Any = codec.encode
) -> CronRunner:
    keys = EngineKeys(QueueKeys(prefix))
    return CronRunner(
        client, keys, jobs, encode=encode, missed="once", now_ms=clock, timezone=NEW_YORK
    )


async def enqueued(client: Any, prefix: str) -> list[str]:
    return sorted(id_.decode() for id_ in await client.zrange(f"{prefix}queue", 0, -1))


@pytest.mark.parametrize(
    "change", [datetime(2024, 11, 3, 6, tzinfo=UTC), datetime(2024, 3, 10, 7, tzinfo=UTC)]
)
async def test_an_hourly_job_runs_every_hour_over_a_change_of_the_clock(
    client: Any, prefix: str, change: datetime
) -> None:
    clock = Clock(round((change - timedelta(hours=3, minutes=1)).timestamp() * 1000))
    crons = runner(client, prefix, [cron(job, name="c", minute=0, microsecond=0)], clock)
    first = clock.now
    await crons.tick()
    for _ in range(7):
        clock.now += HOUR_MS
        assert await crons.tick() <= 10
    expected = [first + 60_000 + n * HOUR_MS for n in range(7)]
    assert await enqueued(client, prefix) == [f"c:{tick}" for tick in expected]


async def test_a_secondly_job_waits_for_its_tick_in_a_repeated_hour(
    client: Any, prefix: str
) -> None:
    clock = Clock(round(datetime(2024, 11, 3, 6, 30, tzinfo=UTC).timestamp() * 1000))
    crons = runner(client, prefix, [cron(job, name="c", second=None, microsecond=0)], clock)
    for _ in range(5):
        assert await crons.tick() == 1.0
        clock.now += 1000
    assert len(await enqueued(client, prefix)) == 4


class Broken(CronJob):
    def calculate_next(self, prev_run: datetime) -> None:
        raise SystemError(prev_run)


class Stuck(CronJob):
    def calculate_next(self, prev_run: datetime) -> None:
        self.next_run = prev_run


@pytest.mark.parametrize("kind", [Broken, Stuck])
async def test_a_bad_cron_job_stops_no_other(client: Any, prefix: str, kind: type[CronJob]) -> None:
    clock = Clock(round(time.time() * 1000))
    bad = kind(**vars(cron(job, name="bad")))
    crons = runner(client, prefix, [bad, cron(job, name="good", second=None)], clock)
    for _ in range(3):
        assert await crons.tick() > 0.001
        clock.now += 1000
    assert len(await enqueued(client, prefix)) == 2


async def test_a_job_that_cannot_be_encoded_stops_no_other(client: Any, prefix: str) -> None:
    def encode(body: dict[str, Any]) -> bytes:
        if body["f"] == "bad":
            raise ValueError("no")
        return codec.encode(body)

    clock = Clock(round(time.time() * 1000))
    jobs = [cron(job, name=name, second=None) for name in ("bad", "good")]
    crons = runner(client, prefix, jobs, clock, encode)
    for _ in range(3):
        await crons.tick()
        clock.now += 1000
    assert [id_.partition(":")[0] for id_ in await enqueued(client, prefix)] == ["good"] * 2


async def test_two_crons_of_one_function_run_both(client: Any, prefix: str) -> None:
    clock = Clock(round(datetime(2024, 6, 1, 12, 30, tzinfo=UTC).timestamp() * 1000))
    jobs = [cron(job, name="c", minute=minute, microsecond=0) for minute in (0, 45)]
    crons = runner(client, prefix, jobs, clock)
    start = clock.now
    await crons.tick()
    for _ in range(8):
        clock.now += HOUR_MS // 4
        await crons.tick()
    ticks = [start + n * HOUR_MS // 4 for n in (1, 2, 5, 6)]
    assert await enqueued(client, prefix) == [f"c:{tick}" for tick in ticks]


async def test_ticks_go_on_after_the_clock_was_set_back(client: Any, prefix: str) -> None:
    now = round(time.time() * 1000)
    clock = Clock(now + 24 * HOUR_MS)
    jobs = [cron(job, name="c", second=None, microsecond=0)]
    crons = runner(client, prefix, jobs, clock)
    await crons.tick()
    clock.now += 1000
    await crons.tick()
    clock.now = now
    assert await crons.tick() <= 1
    clock.now += 1000
    await crons.tick()
    assert len(await enqueued(client, prefix)) == 2


@pytest.mark.parametrize(("quiet", "level"), [(True, "debug"), (False, "info")])
async def test_housekeeping_that_succeeds_is_logged_for_debugging_only(
    client: Any, prefix: str, quiet: bool, level: str
) -> None:
    clock = Clock(round(time.time() * 1000))
    tidy = cron_job(job, "cron:tidy", "* * * * * *", quiet=quiet)
    with structlog.testing.capture_logs() as logs:
        crons = runner(client, prefix, [tidy], clock)
        await crons.tick()
        clock.now += 1000
        await crons.tick()
        await burst(client, prefix, [func(job, name="other")], cron_jobs=[tidy])
    told = {line["event"]: line["log_level"] for line in logs}
    assert (told["cron.enqueued"], told["job.completed"]) == (level, level)


async def test_ticks_of_a_paused_function_do_not_pile_up(client: Any, prefix: str) -> None:
    clock = Clock(round(time.time() * 1000))
    jobs = [cron(job, name="c", second=None), cron(job, name="all", second=None, unique=False)]
    crons, queue = runner(client, prefix, jobs, clock), queue_of(client, prefix)
    await queue.pause(function="c")
    await queue.pause(function="all")
    for _ in range(5):
        clock.now += 1000
        await crons.tick()
    (waits,) = await enqueued(client, prefix)
    assert waits.startswith("c:")
    # The one that waited is running: the next tick is not a missed one.
    await queue.resume(function="c")
    await burst(client, prefix, [func(job, name="c")])
    clock.now += 1000
    await crons.tick()
    assert len(await enqueued(client, prefix)) == 1


async def test_runs_of_a_paused_schedule_do_not_pile_up(client: Any, prefix: str) -> None:
    queue, keys = queue_of(client, prefix), EngineKeys(QueueKeys(prefix))
    await queue.schedule("s", call("c"), every_s=60)
    await queue.pause(priority=Priority.DEFAULT)
    clock = Clock(round(time.time() * 1000))
    runs = ScheduleRunner(client, keys, encode=codec.encode, now_ms=clock)
    for _ in range(4):
        clock.now += 60_001
        await runs.run()
    (waits,) = await enqueued(client, prefix)
    assert await client.hget(keys.schedule_runs, "s") == waits.encode()
    await queue.resume(priority=Priority.DEFAULT)
    await burst(client, prefix, [func(job, name="c")])
    clock.now += 60_001
    await runs.run()
    assert len(await enqueued(client, prefix)) == 1
    assert await queue.jobs.unschedule("s")
    assert not await client.exists(keys.schedule_runs)
