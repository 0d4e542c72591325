"""Everything that matches a filter is canceled, run, retried or deleted, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq.worker import func

from tests.support.bounded_steps import assert_short_steps
from tests.support.engine import burst
from tests.support.queues import queue_of, stores_of
from worker import InvalidArgument, JobQueue, Priority, call
from worker.queue.bulk import BulkStep
from worker.queue.filters import JobFilter

pytestmark = pytest.mark.integration


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix)


async def fails(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    raise ValueError(f"as asked: {args}")


FAILS = [func(fails, name=name, max_tries=1) for name in ("fails", "other")]


async def dead_ids(queue: JobQueue) -> set[str]:
    return {letter.id for letter in await queue.dead.list(limit=10_000)}


async def test_a_dry_run_counts_and_changes_nothing(queue: JobQueue) -> None:
    for number in range(3):
        await queue.enqueue("a", job_id=f"x-{number}", delay_s=3600)
    await queue.enqueue("a", job_id="y", delay_s=3600)
    wanted = JobFilter(id_prefix="x-")
    assert await queue.bulk.run("run", wanted, dry_run=True) == BulkStep(4, 3, 0)
    assert await queue.bulk.run("cancel", wanted, dry_run=True) == BulkStep(4, 3, 0)
    assert (await queue.jobs.overview()).deferred == 4


async def test_deferred_jobs_run_now_and_others_stay(queue: JobQueue) -> None:
    await queue.enqueue("a", job_id="mine", delay_s=3600, priority=Priority.LOW)
    await queue.enqueue("b", job_id="other", delay_s=3600)
    await queue.enqueue("a", job_id="due")
    due = (await queue.jobs.describe("due")).due_at

    assert (await queue.bulk.run("run", JobFilter(function="a"))).done == 1

    assert (await queue.jobs.describe("mine")).state == "queued"
    assert (await queue.jobs.describe("other")).state == "deferred"
    assert (await queue.jobs.describe("due")).due_at == due
    assert await queue.jobs.run_now("other", "due", "unknown", "other") == 1


async def test_a_running_or_held_job_is_not_moved(queue: JobQueue) -> None:
    stores = stores_of(queue)
    for id_ in ("runs", "claimed", "held"):
        await queue.enqueue("a", job_id=id_, delay_s=3600)
    key = stores.keys.queue()
    await stores.client.zadd(f"{key}:running", {"runs": 9e12})
    await stores.client.set(stores.keys.in_progress("claimed"), "stock arq")
    await stores.client.zadd(key, {"held": 10**15 + 1})
    before = await stores.client.zrange(key, 0, -1, withscores=True)
    assert await queue.jobs.run_now("runs", "claimed", "held") == 0
    assert await stores.client.zrange(key, 0, -1, withscores=True) == before


async def test_canceled_jobs_end_and_each_is_counted_once(queue: JobQueue) -> None:
    """A canceled job moves to the end of those that are due: it is met again there."""
    await queue.enqueue_many([call("fails", job_id=f"c-{n}") for n in range(450)])
    await queue.enqueue("fails", job_id="later", delay_s=3600)
    await queue.enqueue("other", job_id="stays", delay_s=3600)

    total = await queue.bulk.run("cancel", JobFilter(function="fails"))

    assert total.done == 451
    assert (await queue.bulk.run("cancel", JobFilter(function="fails"))).done == 0
    stores = stores_of(queue)
    await queue.jobs.run_now("stays")
    await burst(stores.client, stores.keys.prefix, FAILS)
    assert await dead_ids(queue) == {"stays"}


async def test_dead_letters_are_retried_and_deleted_by_filters(queue: JobQueue) -> None:
    stores = stores_of(queue)
    for number in range(30):
        name = "other" if number % 3 else "fails"
        await queue.enqueue(name, number, user={"id": number % 2}, job_id=f"d-{number}")
    await burst(stores.client, stores.keys.prefix, FAILS)
    assert len(await dead_ids(queue)) == 30

    of_one_user = JobFilter(function="fails", arguments={"user.id": "1"})
    deleted = await queue.bulk.run("delete", of_one_user)
    assert deleted == BulkStep(30, 5, 5)
    assert (await queue.bulk.run("delete", JobFilter(error="ASKED: (7,)"))).done == 1
    assert (await queue.bulk.run("delete", JobFilter(arguments={"0": "8"}))).done == 1
    assert (await queue.bulk.run("delete", JobFilter(min_tries=2))).done == 0
    assert (await queue.bulk.run("delete", JobFilter(min_age_s=3600))).done == 0
    assert (await queue.bulk.run("retry", JobFilter(id_prefix="d-1"))).done == 10
    assert len(await dead_ids(queue)) == 13
    assert (await queue.jobs.overview()).queues[Priority.DEFAULT].due == 10


async def test_age_is_counted_from_the_enqueue_and_from_the_death(queue: JobQueue) -> None:
    now = datetime.now(UTC)
    old = JobFilter(min_age_s=60)
    given: Any = {"job_id": "a", "function": "f", "priority": "low", "tries": 0, "error": None}
    assert old.accepts(now, since=now - timedelta(seconds=61), **given)
    assert not old.accepts(now, since=now - timedelta(seconds=59), **given)
    assert not old.accepts(now, since=None, **given)
    await queue.enqueue("a")
    assert (await queue.bulk.run("cancel", old)).matched == 0


async def test_a_stop_tells_what_was_done_and_a_cursor_goes_on(queue: JobQueue) -> None:
    await queue.enqueue_many([call("a", job_id=f"j-{n}", delay_s=3600) for n in range(500)])
    first = await queue.bulk.step("run", JobFilter(), limit_s=0)
    assert (first.looked, first.done) == (200, 200)
    second = await queue.bulk.step("run", JobFilter(), limit_s=0, cursor=first.cursor)
    assert second.done == 200
    seen: list[BulkStep] = []

    def stop(step: BulkStep) -> bool:
        seen.append(step)
        return False

    total = await queue.bulk.run("run", JobFilter(), progress=stop)
    assert seen == [total]
    assert (await queue.jobs.overview()).deferred == 100 - total.done


@pytest.mark.parametrize(
    ("action", "wanted", "options"),
    [
        ("drop", JobFilter(), {}),
        ("retry", JobFilter(), {"state": "queued"}),
        ("cancel", JobFilter(error="x"), {}),
        ("cancel", JobFilter(min_age_s=-1), {}),
        ("cancel", JobFilter(min_tries=-1), {}),
        ("cancel", JobFilter(function="a\nb"), {}),
        ("cancel", JobFilter(), {"cursor": "x"}),
        ("delete", JobFilter(), {"cursor": "x"}),
        ("cancel", JobFilter(arguments={str(n): "" for n in range(17)}), {}),
    ],
)
async def test_what_means_nothing_is_refused(
    queue: JobQueue, action: str, wanted: JobFilter, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        await queue.bulk.step(action, wanted, **options)


async def test_no_round_holds_the_server(queue: JobQueue) -> None:
    stores = stores_of(queue)
    calls = [call("a", job_id=f"j-{n}", delay_s=3600) for n in range(1000)]

    async def prepare() -> None:
        await stores.client.flushdb()
        await queue.enqueue_many(calls)

    await assert_short_steps(
        *(stores.client, stores.keys.prefix),
        lambda: queue.bulk.run("run", JobFilter()),
        prepare,
    )
