"""Schedules and crons that are switched off and on: what runs no more, what is not made good."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from arq.cron import cron
from arq.worker import func

from cache.encoding import codec
from tests.support.engine import running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker import call
from worker.client import JobQueue
from worker.engine.cron import CronRunner
from worker.engine.schedules import ScheduleRunner
from worker.errors import NotFound
from worker.keys import HELD_MS, EngineKeys, QueueKeys
from worker.queue.schedules import ScheduleState
from worker.queue.switches import CronState

pytestmark = pytest.mark.integration

HOUR_MS = 3_600_000
CENTURY_MS = 100 * 366 * 24 * HOUR_MS


async def job(ctx: dict[str, Any]) -> None: ...


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix)


@pytest.fixture
def keys(prefix: str) -> EngineKeys:
    return EngineKeys(QueueKeys(prefix))


def now_ms() -> int:
    return round(time.time() * 1000)


def schedules_of(client: Any, keys: EngineKeys, now: int) -> ScheduleRunner:
    return ScheduleRunner(client, keys, encode=codec.encode, now_ms=lambda: now)


def crons_of(client: Any, keys: EngineKeys, now: list[int]) -> CronRunner:
    jobs = [
        cron(job, name="c", second=None, run_at_startup=True),
        cron(job, name="each", second=None, unique=False),
    ]
    return CronRunner(
        client,
        keys,
        jobs,
        encode=codec.encode,
        missed="once",
        now_ms=lambda: now[0],
        timezone=None,
    )


async def state_of(queue: JobQueue) -> ScheduleState:
    (state,) = await queue.jobs.schedule_states()
    return state


async def test_a_schedule_that_is_off_never_runs(
    client: Any, queue: JobQueue, keys: EngineKeys
) -> None:
    await queue.schedule("s", call("f"), every_s=60)
    before = await client.zscore(keys.schedules, "s")
    assert await queue.jobs.switches.off("s")
    assert not await queue.jobs.switches.off("s")
    await schedules_of(client, keys, now_ms() + CENTURY_MS).run()
    assert await client.zcard(keys.default_queue) == 0
    state = await state_of(queue)
    assert (state.is_on, state.next_at) == (False, None)
    # By hand it still runs, and one that was off for a moment keeps its next run.
    await queue.jobs.run_schedule("s")
    assert await client.zcard(keys.default_queue) == 1
    assert await queue.jobs.switches.on("s")
    assert not await queue.jobs.switches.on("s")
    assert await client.zscore(keys.schedules, "s") == before
    assert (await state_of(queue)).is_on


async def test_runs_missed_while_off_are_not_made_good(
    client: Any, queue: JobQueue, keys: EngineKeys
) -> None:
    await queue.schedule("every", call("f"), every_s=3600)
    await queue.schedule("cron", call("f"), cron="0 0 1 1 *")
    was = now_ms() - 100 * HOUR_MS - 5000
    for name in ("every", "cron"):
        await client.zadd(keys.schedules, {name: was})
        assert await queue.jobs.switches.off(name)
        assert await queue.jobs.switches.on(name)
    due = await client.zscore(keys.schedules, "every")
    assert (due - was) % HOUR_MS == 0
    assert now_ms() < due <= now_ms() + HOUR_MS
    assert await client.zscore(keys.schedules, "cron") == 0
    await schedules_of(client, keys, now_ms()).run()
    assert await client.zcard(keys.default_queue) == 0
    assert await client.zscore(keys.schedules, "cron") > now_ms()


async def test_a_new_registration_leaves_a_schedule_off(
    client: Any, queue: JobQueue, keys: EngineKeys
) -> None:
    await queue.schedule("s", call("f"), every_s=60)
    await queue.jobs.switches.off("s")
    for every_s in (60, 30):
        await queue.schedule("s", call("f"), every_s=every_s)
        assert not (await state_of(queue)).is_on
    await queue.schedule("s", call("f"), cron="0 3 * * *")
    assert await client.zscore(keys.schedules, "s") == HELD_MS
    assert await queue.jobs.switches.on("s")
    assert await client.zscore(keys.schedules, "s") == 0
    # Removing it forgets the switch.
    await queue.jobs.switches.off("s")
    await queue.jobs.unschedule("s")
    await queue.schedule("s", call("f"), every_s=60)
    assert (await state_of(queue)).is_on


class Meanwhile:
    """A worker's client. Before the worker reads a schedule's job, an operator switches it off."""

    def __init__(self, client: Any, queue: JobQueue) -> None:
        self._client = client
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def hget(self, *args: Any) -> Any:
        await self._queue.jobs.switches.off("s")
        return await self._client.hget(*args)


@pytest.mark.parametrize(("due", "body"), [(1, None), (0, None), (1, b"not a job")])
async def test_a_worker_that_is_running_a_schedule_leaves_it_off(
    client: Any, queue: JobQueue, keys: EngineKeys, due: int, body: bytes | None
) -> None:
    await queue.schedule("s", call("f"), cron="* * * * *")
    await client.zadd(keys.schedules, {"s": due})
    if body:
        await client.hset(keys.schedule_jobs, "s", body)
    await schedules_of(Meanwhile(client, queue), keys, now_ms()).run()
    assert await client.zscore(keys.schedules, "s") == HELD_MS + due
    assert await client.zcard(keys.default_queue) == 0


async def test_a_cron_that_is_off_enqueues_no_tick(
    client: Any, queue: JobQueue, keys: EngineKeys
) -> None:
    now = [now_ms() - HOUR_MS]
    await client.hset(keys.cron, mapping={"c": now[0], "each": now[0]})
    for name in ("c", "each"):
        assert await queue.jobs.switches.off(name)
        assert not await queue.jobs.switches.off(name)
    crons = crons_of(client, keys, now)
    for _ in range(4):
        await crons.tick()
        now[0] += 1000
    assert await client.zcard(keys.default_queue) == 0
    shown = {each.name: each.off_since is not None for each in await queue.jobs.switches.crons()}
    assert shown == {"c": True, "each": True}
    for name in ("c", "each"):
        assert await queue.jobs.switches.on(name)
        assert not await queue.jobs.switches.on(name)
    # The worker's clock has come as far as the server's.
    now[0] = now_ms()
    await crons.tick()
    await client.delete(keys.default_queue)
    now[0] += 1000
    await crons.tick()
    assert await client.zcard(keys.default_queue) == 2


async def test_a_cron_shows_its_next_tick_and_what_became_of_the_last(
    client: Any, queue: JobQueue, keys: EngineKeys
) -> None:
    now = [now_ms()]
    crons = crons_of(client, keys, now)
    await crons.tick()

    async def state() -> CronState:
        return next(each for each in await queue.jobs.switches.crons() if each.name == "c")

    begun = await state()
    assert (begun.last_job, begun.last_outcome) == ("", "")
    assert begun.next_at is not None
    assert 0 < begun.next_at.timestamp() * 1000 - now[0] <= 1000
    now[0] += 1000
    await crons.tick()
    ticked = await state()
    assert ticked.last_at == begun.next_at
    assert ticked.next_at == begun.next_at + timedelta(seconds=1)
    assert (ticked.last_job, ticked.last_outcome) == (
        f"c:{round(ticked.last_at.timestamp() * 1000)}",
        "waits",
    )
    await client.delete(keys.base.job(ticked.last_job))
    assert (await state()).last_outcome == "ended"
    await client.hset(keys.base.dead_job(ticked.last_job), "name", "c")
    assert (await state()).last_outcome == "dead"
    await queue.jobs.switches.off("c")
    assert (await state()).next_at is None
    await queue.jobs.switches.on("c")
    assert (await state()).next_at == ticked.next_at
    # Its workers are gone, or have it no more.
    await client.hset(keys.cron_next, "c", f"{now_ms() - HOUR_MS}:c")
    assert (await state()).next_at is None


async def test_a_cron_runs_by_hand_beside_its_ticks(
    client: Any, queue: JobQueue, keys: EngineKeys
) -> None:
    ran: asyncio.Queue[str] = asyncio.Queue()

    async def tick(ctx: dict[str, Any]) -> None:
        ran.put_nowait(ctx["job_id"])

    async with running(client, keys.base.prefix, [], cron_jobs=[cron(tick, name="c", hour=3)]):
        await eventually(lambda: client.hget(keys.cron_next, "c"))
        before = await queue.jobs.switches.crons()
        by_hand = await queue.jobs.run_schedule("c")
        async with asyncio.timeout(30):
            assert await ran.get() == by_hand.id
    assert await queue.jobs.switches.crons() == before
    with pytest.raises(NotFound, match="no schedule or cron 'other'"):
        await queue.jobs.run_schedule("other")


async def test_ticks_missed_while_off_are_not_made_good(
    client: Any, queue: JobQueue, keys: EngineKeys
) -> None:
    now = [now_ms()]
    long_ago = now[0] - 100 * HOUR_MS
    await client.hset(keys.cron, mapping={"c": long_ago, "startup:c": long_ago})
    for name in ("c", "startup:c"):
        await queue.jobs.switches.off(name)
    await queue.jobs.switches.on("c")
    await crons_of(client, keys, now).tick()
    assert await client.zcard(keys.default_queue) == 0


async def test_what_does_not_exist_cannot_be_switched(
    client: Any, queue: JobQueue, keys: EngineKeys
) -> None:
    await client.zadd(keys.schedules, {"~gathering": 5})
    for name in ("other", "~gathering"):
        for switch in (queue.jobs.switches.off, queue.jobs.switches.on):
            with pytest.raises(NotFound, match=f"no schedule or cron '{name}'"):
                await switch(name)
    assert await client.zscore(keys.schedules, "~gathering") == 5
    assert not await client.exists(keys.cron_off)


async def test_an_idle_worker_goes_on_with_what_is_switched_on(
    client: Any, prefix: str, queue: JobQueue
) -> None:
    ran = asyncio.Event()

    async def tell(ctx: dict[str, Any]) -> None:
        ran.set()

    await queue.schedule("s", call("tell"), every_s=0.05)
    await queue.jobs.switches.off("s")
    async with running(client, prefix, [func(tell, name="tell")]), asyncio.timeout(30):
        assert not ran.is_set()
        await queue.jobs.switches.on("s")
        await ran.wait()
