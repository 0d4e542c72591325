"""The client's job half: unique, expiry, chains, gathering, limits, dead letters, schedules."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from arq.worker import func

from cache.connection.pool import PoolOptions, open_pool
from cache.encoding import codec
from tests.support.engine import burst, running
from tests.support.options import options_of
from tests.support.queues import queue_of
from tests.support.servers import valkey
from tests.support.wait import eventually
from worker import Priority, QueueFull, QueueMemoryFull, Unique, call
from worker.engine import RetryPolicy, job
from worker.errors import InvalidArgument, JobFailed
from worker.keys import QUEUE_PREFIX, QueueKeys
from worker.queue.store import job_body

pytestmark = pytest.mark.integration


async def add(ctx: dict[str, Any], *numbers: int, plus: int = 0) -> int:
    return sum(numbers) + plus


async def total(ctx: dict[str, Any], numbers: list[int], plus: int = 0) -> int:
    return sum(numbers) + plus


async def fail(ctx: dict[str, Any]) -> None:
    raise ValueError("no")


# -- ids and unique keys --------------------------------------------------------------


async def test_a_kept_result_does_not_block_its_job_id(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for expected in (1, 2):
        again = await queue.enqueue("add", expected, job_id="same")
        assert again.is_new
        await burst(client, prefix, [add])
        assert await again.result(timeout_s=10) == expected


async def test_a_waiting_job_of_the_id_is_left_as_it_is(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    first = await queue.enqueue("add", 1, job_id="same")
    second = await queue.enqueue("add", 2, job_id="same")
    assert (first.is_new, second.is_new) == (True, False)
    await burst(client, prefix, [add])
    assert await second.result(timeout_s=10) == 1


async def test_unique_until_it_has_ended_gives_the_first_ones_handle(
    client: Any, prefix: str
) -> None:
    queue = queue_of(client, prefix)
    started, go = asyncio.Event(), asyncio.Event()

    async def hold(ctx: dict[str, Any]) -> None:
        started.set()
        await go.wait()

    async with running(client, prefix, [func(hold, name="hold")]):
        first = await queue.enqueue("hold", unique="k")
        await asyncio.wait_for(started.wait(), 10)
        second = await queue.enqueue("hold", unique="k")
        assert (second.id, second.is_new) == (first.id, False)
        go.set()
        await first.result(timeout_s=10)
        assert (await queue.enqueue("hold", unique="k")).is_new


async def test_unique_while_queued_is_free_once_it_runs(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    lock = Unique("k", "queued")
    go = asyncio.Event()

    async def hold(ctx: dict[str, Any]) -> None:
        await go.wait()

    await queue.enqueue("hold", unique=lock)
    assert not (await queue.enqueue("hold", unique=lock)).is_new
    async with running(client, prefix, [func(hold, name="hold")]):

        async def enqueued() -> bool:
            return (await queue.enqueue("hold", unique=lock)).is_new

        await eventually(enqueued)
        go.set()


async def test_unique_in_a_window_outlives_the_job(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    lock = Unique("k", "window", window_s=60)
    first = await queue.enqueue("add", 1, unique=lock)
    await burst(client, prefix, [add])
    assert not (await queue.enqueue("add", 1, unique=lock)).is_new
    assert (await queue.enqueue("add", 1, unique=Unique("k", "window", window_s=60))).id == first.id
    assert 0 < await client.pttl(f"{prefix}unique:k") <= 60_000


async def test_a_dead_job_frees_its_unique_key(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("fail", unique="k")
    await burst(client, prefix, [fail])
    assert (await queue.enqueue("fail", unique="k")).is_new


# -- expiry, chains, gathering ----------------------------------------------------------


async def test_a_job_past_its_expiry_is_a_dead_letter_and_runs_when_retried(
    client: Any, prefix: str
) -> None:
    queue = queue_of(client, prefix)
    late = await queue.enqueue("add", 1, expires_s=0.001, delay_s=0.05)
    await burst(client, prefix, [add])
    with pytest.raises(JobFailed, match="expired"):
        await late.result(timeout_s=10)
    assert [letter.reason for letter in await queue.dead.list()] == ["expired"]
    assert await queue.dead.retry(late.id) == 1
    await burst(client, prefix, [add])
    assert await late.result(timeout_s=10) == 1


async def test_then_runs_with_the_result_and_only_after_success(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    chain = call("add", 10, job_id="next", then=call("add", plus=100, job_id="last"))
    await queue.enqueue("add", 1, 2, then=chain)
    await queue.enqueue("fail", then=call("add", job_id="never"))
    await burst(client, prefix, [add, fail])
    assert await queue.jobs.get("next").result(timeout_s=10) == 13
    assert await queue.jobs.get("last").result(timeout_s=10) == 113
    assert await queue.jobs.get("never").status() == "not_found"


async def test_gather_hands_on_all_results_in_order(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    parts = [call("add", n, priority=p) for n, p in enumerate(Priority)]
    after = await queue.jobs.gather(parts, then=call("total", plus=100, priority=Priority.LOW))
    waiting = asyncio.create_task(after.result(timeout_s=30))
    await asyncio.wait([waiting], timeout=0.1)
    assert await after.status() == await queue.jobs.get(after.id).status() == "deferred"
    await burst(client, prefix, [add, total])
    assert await waiting == 106
    assert not await client.keys(f"{prefix}gather:*")


async def test_gather_waits_for_a_part_that_was_dead(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    broken = True

    async def moody(ctx: dict[str, Any]) -> int:
        if broken:
            raise ValueError
        return 5

    functions = [add, total, func(moody, name="moody")]
    after = await queue.jobs.gather([call("add", 1), call("moody", job_id="m")], then=call("total"))
    await burst(client, prefix, functions)
    assert await after.status() == "deferred"
    broken = False
    assert await queue.dead.retry("m") == 1
    await burst(client, prefix, functions)
    assert await after.result(timeout_s=10) == 6


async def test_a_gathering_repeated_while_open_stores_nothing(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for n in (1, 2):
        await queue.jobs.gather([call("add", n)], then=call("total", job_id="sum"))
    await burst(client, prefix, [add, total])
    assert await queue.jobs.get("sum").result(timeout_s=10) == 1
    again = await queue.jobs.gather([call("add", 3)], then=call("total", job_id="sum"))
    assert await again.status() == "deferred"  # the earlier result is not taken for the new one
    await burst(client, prefix, [add, total])
    assert await again.result(timeout_s=10) == 3


# -- limits -----------------------------------------------------------------------------


async def test_a_full_queue_refuses_with_a_named_error(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix, options_of(queue_max_length=2))
    await queue.enqueue("add", priority=Priority.LOW)
    with pytest.raises(QueueFull):
        await queue.enqueue_many([call("add"), call("add")])
    await queue.enqueue("add", job_id="there")
    with pytest.raises(QueueFull):
        await queue.enqueue("add")
    assert not (await queue.enqueue("add", job_id="there")).is_new


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[int]:
    with valkey(tmp_path / "small") as port:
        yield port


@asynccontextmanager
async def client_of(port: int) -> Any:
    async with open_pool(f"redis://127.0.0.1:{port}", PoolOptions(), name="t") as client:
        yield client


async def test_over_the_memory_watermark_an_enqueue_is_refused(small_server: int) -> None:
    async with client_of(small_server) as client:
        queue = queue_of(client, QUEUE_PREFIX, options_of(queue_max_memory_share=0.8))
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory", int(used / 0.85))
        with pytest.raises(QueueMemoryFull, match="LETTA_QUEUE_MAX_MEMORY_SHARE"):
            await queue.enqueue("add")
        with pytest.raises(QueueMemoryFull):
            await queue.send_webhook("https://example.com/", {}, event_type="e")


async def test_a_server_out_of_memory_refuses_jobs_but_ends_those_it_has(
    small_server: int,
) -> None:
    async with client_of(small_server) as client:
        queue = queue_of(client, QUEUE_PREFIX)
        jobs = await queue.enqueue_many([call("add", n) for n in range(50)])
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory", used // 2)
        with pytest.raises(QueueMemoryFull):
            await queue.enqueue("add")
        worker = await burst(client, "arq:", [add])
        assert worker.jobs_complete == 50
        assert await jobs[-1].result(timeout_s=10) == 49


async def test_enqueue_many_stores_all_in_order(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    jobs = await queue.enqueue_many([call("add", n) for n in range(1200)])
    assert len({job_.id for job_ in jobs}) == 1200
    worker = await burst(client, prefix, [add], max_jobs=64)
    assert worker.jobs_complete == 1200
    assert await jobs[1100].result(timeout_s=10) == 1100


@pytest.mark.parametrize("large", [False, True])
async def test_of_many_jobs_only_the_new_ones_are_stored(
    client: Any, prefix: str, large: bool
) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("add", 1, job_id="known")
    body = "x" * 300_000 if large else "x"
    ids = ["a", "known", "b", "a"]
    many = [call("add", n, body, job_id=job_id) for n, job_id in enumerate(ids)]
    jobs = await queue.enqueue_many(many)
    assert [job_.id for job_ in jobs] == ids
    first = {id_: codec.decode(await client.get(f"{prefix}job:{id_}"))["a"][0] for id_ in ids}
    assert first == {"a": 0, "known": 1, "b": 2}
    await queue.enqueue_many(many)
    assert await client.zcard(f"{prefix}queue") == 3


async def test_of_new_jobs_with_one_id_the_first_is_stored(client: Any, prefix: str) -> None:
    await queue_of(client, prefix).enqueue_many([call("add", n, job_id="a") for n in range(3)])
    assert codec.decode(await client.get(f"{prefix}job:a"))["a"] == [0]


async def test_bad_arguments_store_nothing(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    with pytest.raises(InvalidArgument):
        await queue.enqueue("add", unique=Unique("k", "window"))
    with pytest.raises(InvalidArgument):
        await queue.enqueue("add", unique="")
    with pytest.raises(InvalidArgument):
        await queue.enqueue("add", then=call("not a name"))
    with pytest.raises(InvalidArgument):
        await queue.jobs.gather([], then=call("add"))
    with pytest.raises(InvalidArgument):
        await queue.schedule("s", call("add"))
    assert not await client.keys(f"{prefix}*")


# -- dead letters -------------------------------------------------------------------------


async def test_dead_letters_are_listed_retried_and_purged(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    start = datetime.now(UTC) - timedelta(seconds=5)
    for n in range(4):
        await queue.enqueue("fail", job_id=f"j{n}", priority=Priority.HIGH)
    await burst(client, prefix, [fail])
    letters = await queue.dead.list()
    assert {letter.id for letter in letters} == {"j0", "j1", "j2", "j3"}
    assert {(x.name, x.reason, x.error, x.tries, x.priority) for x in letters} == {
        ("fail", "failed", "ValueError: no", 1, "high")
    }
    assert all(codec.decode(letter.body)["f"] == "fail" for letter in letters)
    stats = await queue.stats()
    assert stats["high"]["dead"] == 4
    assert await queue.dead.retry("j0") == 1
    assert await queue.dead.retry("j0") == 0
    assert await client.zscore(f"{prefix}queue:high", "j0") is not None
    assert await queue.dead.purge("j1") == 1
    assert await queue.dead.retry(since=start + timedelta(days=1)) == 0
    assert await queue.dead.retry(since=start) == 2
    assert await queue.dead.count() == 0
    await burst(client, prefix, [fail])
    assert await queue.dead.purge(before=datetime.now(UTC) + timedelta(minutes=1)) == 3
    assert not await client.keys(f"{prefix}dead*")


async def reads_of(client: Any) -> int:
    """How often sorted sets were read."""
    return int((await client.info("commandstats"))["cmdstat_zrange"]["calls"])


async def test_dead_letters_of_a_time_are_chosen_page_by_page(client: Any, prefix: str) -> None:
    queue, keys = queue_of(client, prefix), QueueKeys(prefix)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    # More than a page has died in one millisecond.
    died = [0] * 3 + [1] * 1200 + [2] * 3 + [3] * 2
    async with client.pipeline(transaction=False) as pipe:
        for n, ms in enumerate(died):
            body = job_body("add", [n, n], {}, now_ms=0)
            letter = {"body": body, "queue": 3}
            pipe.hset(keys.dead_job(f"j{n}"), mapping=letter)
            pipe.zadd(keys.dead, {f"j{n}": start.timestamp() * 1000 + ms})
        await pipe.execute()
    assert await queue.dead.retry(since=start + timedelta(milliseconds=2)) == 5
    assert await queue.dead.purge(before=start + timedelta(milliseconds=1)) == 3
    reads = await reads_of(client)
    assert await queue.dead.purge(before=start + timedelta(milliseconds=2)) == 1200
    # No command reads them all: of the ten million that may be kept, that would stop the server.
    assert await reads_of(client) - reads > 2
    assert (await queue.dead.count(), (await queue.stats())["default"]["queued"]) == (0, 5)


async def test_a_dead_letter_whose_id_waits_again_stays(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("fail", job_id="a")
    await burst(client, prefix, [fail])
    await queue.enqueue("fail", job_id="a")
    assert await queue.dead.retry("a") == 0
    assert await queue.dead.count() == 1


async def test_a_retried_dead_letter_has_all_its_tries_again(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    tries: list[int] = []

    async def broken(ctx: dict[str, Any]) -> None:
        tries.append(ctx["job_try"])
        raise ValueError

    functions = [job(broken, name="broken", retry=RetryPolicy(max_tries=2, base_s=0.001))]
    await queue.enqueue("broken", job_id="a")
    await burst(client, prefix, functions)
    await queue.dead.retry("a")
    await burst(client, prefix, functions)
    assert tries == [1, 2, 1, 2]


# -- looking and repeating ------------------------------------------------------------------


async def test_stats_count_every_state(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    started = asyncio.Event()

    async def hang(ctx: dict[str, Any]) -> None:
        started.set()
        await asyncio.Event().wait()

    await queue.enqueue("hang", priority=Priority.CRITICAL)
    async with running(client, prefix, [func(hang, name="hang")], max_jobs=1):
        await asyncio.wait_for(started.wait(), 10)
        await queue.enqueue("hang", priority=Priority.LOW)
        await queue.enqueue("hang", delay_s=60)
        stats = await queue.stats()
    assert stats["critical"] == {
        "queued": 0, "deferred": 0, "running": 1, "paused": 0, "parked": 0, "dead": 0, "oldest_age_s": 0,
    }  # fmt: skip
    assert (stats["low"]["queued"], stats["default"]["deferred"]) == (1, 1)
    assert stats["low"]["oldest_age_s"] >= 0


async def test_a_repeating_job_runs_until_it_is_removed(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    runs: list[str] = []

    async def tick(ctx: dict[str, Any], word: str) -> None:
        runs.append(word)

    functions = [func(tick, name="tick")]
    async with running(client, prefix, functions), running(client, prefix, functions):
        await queue.schedule("s", call("tick", "a"), every_s=0.05)
        await eventually(lambda: _at_least(runs, 3))
        assert [s.id for s in await queue.jobs.schedules()] == ["s"]
        assert await queue.jobs.unschedule("s")
        assert not await queue.jobs.unschedule("s")
    assert len(await client.keys(f"{prefix}result:s:*")) == len(runs)


async def test_a_cron_schedule_runs_at_its_ticks(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    ids: list[str] = []

    async def tick(ctx: dict[str, Any]) -> None:
        ids.append(ctx["job_id"])

    async with running(client, prefix, [func(tick, name="tick")]):
        await queue.schedule("s", call("tick"), cron="* * * * * *")
        await eventually(lambda: _at_least(ids, 2))
    assert all(int(id_.split(":")[1]) % 1000 == 0 for id_ in ids)


async def _at_least(found: list[Any], count: int) -> bool:
    return len(found) >= count
