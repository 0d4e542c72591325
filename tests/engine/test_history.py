"""How jobs ended, counted by the scripts that end them and read back by function and time."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import pytest
from arq import Retry
from arq.worker import func

from cache.connection.scripts import load
from tests.support.engine import burst, running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker import InvalidArgument, JobQueue, Priority
from worker.engine import EngineOptions
from worker.engine.poll import Poll
from worker.engine.records import Claim
from worker.engine.tally import tally
from worker.keys import EngineKeys, QueueKeys
from worker.queue.history import FunctionHistory, History
from worker.queue.series import BUCKETS, OUTCOMES, Counts, Times

pytestmark = pytest.mark.integration


def outcomes(counts: Counts) -> dict[str, int]:
    return {name: count for name in OUTCOMES if (count := getattr(counts, name))}


async def counted(queue: JobQueue, **filters: Any) -> dict[str, dict[str, int]]:
    """The outcomes of each function, whose minutes and total must agree."""
    found = {}
    for series in await queue.history(**filters):
        sums: Counter[str] = Counter()
        for span in series.spans:
            sums.update(outcomes(span.counts))
        assert sums == outcomes(series.total) == outcomes(series.counts)
        found[f"{series.priority.value}:{series.function}"] = dict(sums)
    return found


# -- by workers -------------------------------------------------------------------


async def quick(ctx: dict[str, Any]) -> None: ...


async def again(ctx: dict[str, Any]) -> None:
    if ctx["job_try"] < 3:
        raise Retry(defer=0)


async def fails(ctx: dict[str, Any]) -> None:
    raise ValueError("as asked")


async def hangs(ctx: dict[str, Any]) -> None:
    await asyncio.Event().wait()


FUNCTIONS = [func(each, name=each.__name__) for each in (quick, again, fails, hangs)]


async def test_every_way_to_end_is_counted_for_its_function(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for priority in (Priority.HIGH, Priority.LOW, Priority.LOW):
        await queue.enqueue("quick", priority=priority)
    for name in ("again", "fails", "nobody_knows_it"):
        await queue.enqueue(name)
    await client.set(f"{prefix}job:spoiled", b"\xc1")
    await client.zadd(f"{prefix}queue", {"spoiled": 1})
    await burst(client, prefix, FUNCTIONS)
    async with running(client, prefix, FUNCTIONS) as worker:
        waits = await queue.enqueue("hangs", job_id="hangs")
        await eventually(lambda: asyncio.sleep(0, bool(worker.claims)))
        assert await waits.abort()

    assert await counted(queue) == {
        "high:quick": {"completed": 1},
        "low:quick": {"completed": 2},
        "default:again": {"retried": 2, "completed": 1},
        "default:fails": {"dead": 1},
        "default:hangs": {"aborted": 1},
        # Neither a name that nobody knows nor an unreadable job gets a series of its own.
        "default:<unknown>": {"dead": 2},
    }
    assert list(await counted(queue, function="quick", priority=Priority.LOW)) == ["low:quick"]


async def test_a_drain_gives_back_and_a_deploy_parks(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("hangs")
    await queue.enqueue("of_the_next_version")
    async with running(client, prefix, FUNCTIONS):
        seen = {"default:<unknown>": {"parked"}}

        async def has_parked() -> bool:
            found = await counted(queue)
            return {name: set(found.get(name, ())) for name in seen} == seen

        await eventually(has_parked)
    assert (await counted(queue))["default:hangs"] == {"given_back": 1}


async def test_run_and_wait_times_are_in_their_buckets(client: Any, prefix: str) -> None:
    async def slow(ctx: dict[str, Any]) -> None:
        begin = time.monotonic()
        while time.monotonic() - begin < 0.02:
            pass

    queue = queue_of(client, prefix)
    await queue.enqueue("slow", at=datetime.now(UTC) - timedelta(seconds=30))
    await burst(client, prefix, [func(slow, name="slow")])
    (series,) = await queue.history(function="slow")
    run, wait = series.total.run, series.total.wait
    assert run.count == wait.count == 1
    assert 0.02 <= run.total_s <= (run.quantile_s(0.5) or 0)
    assert 30 <= wait.total_s <= (wait.quantile_s(0.99) or 0)
    assert run.total_s < 20
    assert wait.quantile_s(0.5) in (60.0, 120.0)


# -- by single polls --------------------------------------------------------------


def poll_of(client: Any, prefix: str, name: str) -> Poll:
    options = EngineOptions(lease_s=10, max_lost_leases=3)
    return Poll(client, EngineKeys(QueueKeys(prefix)), options, worker_id=name)


async def end(poll: Poll, claim: Claim, outcome: str = "completed") -> list[int]:
    """Report one end of a job `f`. Returns the indexes of ends that came too late."""
    claim.function, claim.run_s = "f", 0.001
    batch = [(claim, claim.end("done", {}), outcome)]
    groups = tally(batch)
    return (await poll.run([each for _, each, _ in batch], 0, groups=groups)).late


async def lapse(client: Any, prefix: str) -> None:
    for id_ in await client.zrange(f"{prefix}queue:running", 0, -1):
        await client.zadd(f"{prefix}queue:running", {id_: 1})


async def test_a_late_end_is_not_counted_and_its_lease_is(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("f", job_id="a")
    first, second = poll_of(client, prefix, "first"), poll_of(client, prefix, "second")
    (old,) = (await first.run([], 1)).claims
    await lapse(client, prefix)
    (new,) = (await second.run([], 1)).claims

    assert await end(first, old) == [0]
    assert await counted(queue) == {}
    assert await end(second, new) == []
    assert await counted(queue) == {"default:f": {"completed": 1, "lapsed": 1}}


async def test_some_ends_of_a_group_may_be_late(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for number in range(4):
        await queue.enqueue("f", job_id=f"j{number}")
    poll = poll_of(client, prefix, "w")
    claims = (await poll.run([], 4)).claims
    batch = []
    for claim in claims:
        claim.function, claim.run_s = "f", 2.0
        batch.append((claim, claim.end("done", {}), "completed"))
    await client.set(f"{prefix}in-progress:j1", "somebody else's")
    await poll.run([each for _, each, _ in batch], 0, groups=tally(batch))
    (series,) = await queue.history()
    assert outcomes(series.total) == {"completed": 3}
    assert (series.total.run.count, series.total.run.total_s) == (3, 6.0)


async def test_poison_is_counted_for_the_function_in_its_body(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("killer")
    poll = poll_of(client, prefix, "w")
    for _ in range(3):
        assert (await poll.run([], 1)).claims
        await lapse(client, prefix)
    assert (await poll.run([], 1)).poisoned
    assert await counted(queue) == {"default:killer": {"dead": 1, "lapsed": 3}}


async def test_a_poll_that_is_sent_twice_counts_once(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("f", job_id="a")
    poll = poll_of(client, prefix, "w")
    (claim,) = (await poll.run([], 1)).claims
    sent: list[Any] = []
    original = poll.call_script

    async def twice(args: list[Any]) -> list[Any]:
        sent.append(await original(args))
        return await original(args)

    poll.call_script = twice  # type: ignore[method-assign, assignment]
    assert await end(poll, claim) == []
    assert sent
    assert await counted(queue) == {"default:f": {"completed": 1}}


async def test_the_history_never_holds_up_the_end_of_a_job(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for kind in ("set", "rpush"):
        job = await queue.enqueue("quick")
        await client.delete(f"{prefix}history")
        await getattr(client, kind)(f"{prefix}history", "not ours")
        await burst(client, prefix, FUNCTIONS)
        assert await job.status() in ("complete", "not_found")
    await client.delete(f"{prefix}history")


# -- by the clock -----------------------------------------------------------------


class Clock:
    """Counts ends at any time, with the script's own step."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        steps = {"_types": "queue", "_collect": "queue", "_series": "queue", "_history": "engine"}
        self.script = "\n".join(load(f"worker.{home}", step).source for step, home in steps.items())
        self.script += "\ncount_ends(ARGV[1], tonumber(ARGV[2]), cmsgpack.unpack(ARGV[3]), {})"

    async def count(self, moment: datetime, name: str = "f", ends: int = 1) -> None:
        groups = msgpack.packb([[3, name, 1, 0, ends, 0, BUCKETS - 1, 10 * ends, 20 * ends]])
        now = int(moment.timestamp() * 1000)
        await self.client.eval(self.script, 0, self.prefix, now, groups)


def whole_minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def spans(series: FunctionHistory) -> dict[datetime, int]:
    return {span.start: span.counts.completed for span in series.spans}


@pytest.mark.parametrize("seed", range(6))
async def test_minutes_hours_and_total_agree_with_a_model(
    client: Any, prefix: str, seed: int
) -> None:
    rng, clock = random.Random(seed), Clock(client, prefix)
    history = History(client, QueueKeys(prefix))
    end = whole_minute(datetime.now(UTC))
    moment, minutes = end - timedelta(days=29), Counter[datetime]()
    while moment < end:
        ends = rng.randint(1, 5)
        await clock.count(moment + timedelta(seconds=rng.randint(0, 59)), ends=ends)
        minutes[moment] += ends
        jump = rng.choice([0, 1, 1, 2, 59, 60, 61, 1439, 1440, 1441, 5000, 10_000])
        # The last day in small steps: its minutes are kept.
        moment += timedelta(minutes=min(jump, 90) if end - moment < timedelta(days=1) else jump)
    hours: Counter[datetime] = Counter()
    for minute, count in minutes.items():
        hours[minute.replace(minute=0)] += count

    day = end - timedelta(hours=23)
    (series,) = await history.read(since=day)
    assert spans(series) == {at: count for at, count in minutes.items() if at >= day}
    assert series.total.completed == sum(minutes.values())
    assert series.total.run == Times((series.total.completed, *[0] * 19), series.total.run.total_s)
    assert series.total.wait.total_s == pytest.approx(2e-5 * sum(minutes.values()))
    (series,) = await history.read(since=end - timedelta(days=29, hours=1))
    assert spans(series) == hours
    assert series.counts == series.total
    (total,) = await history.totals()
    assert (total.total, total.spans) == (series.total, [])
    assert not total.counts


async def test_a_clock_that_is_set_back_counts_nothing_twice(client: Any, prefix: str) -> None:
    clock, history = Clock(client, prefix), History(client, QueueKeys(prefix))
    now = whole_minute(datetime.now(UTC)).replace(minute=30) - timedelta(hours=2)
    for minutes in (0, 1, 0, 1, -120, 2):
        await clock.count(now + timedelta(minutes=minutes))
    (series,) = await history.read(since=now - timedelta(days=2), step="hour")
    assert series.total.completed == 6
    assert spans(series) == {
        now.replace(minute=0): 5,
        now.replace(minute=0) - timedelta(hours=2): 1,
    }


async def test_too_many_functions_share_one_series(client: Any, prefix: str) -> None:
    clock, now = Clock(client, prefix), datetime.now(UTC)
    for number in range(140):
        await clock.count(now - timedelta(days=31), f"old{number}")
    for number in range(140):
        await clock.count(now, f"new{number}")
    await clock.count(now + timedelta(minutes=1), "new3")
    found = {
        each.function: each.total.completed for each in await queue_of(client, prefix).history()
    }
    assert len(found) == 129
    assert (found["new127"], found["new3"], found["<other>"]) == (1, 2, 12)
    keys = [key async for key in client.scan_iter(f"{prefix}history*")]
    ttls = [await client.pttl(key) for key in keys]
    assert all(0 < ttl <= 31 * 86_400_000 for ttl in ttls)


async def test_a_month_of_a_series_fits_into_a_megabyte(client: Any, prefix: str) -> None:
    clock, midnight = Clock(client, prefix), datetime(2024, 1, 1, tzinfo=UTC)
    for hour in range(23):
        await clock.count(midnight + timedelta(hours=hour))
    for minute in range(61):
        await clock.count(midnight + timedelta(hours=23, minutes=minute))

    async def size(key: str) -> int:
        return int(await client.memory_usage(f"{prefix}{key}", samples=0))

    hour, day = int(midnight.timestamp()) // 3600 + 23, int(midnight.timestamp()) // 86_400
    minutes = await size(f"history-minutes:{hour}:default:f")
    hours = await size(f"history-hours:{day}:default:f")
    total = await size("history-total:default:f")
    # Full strings: minutes are kept for 25 hours, hours for 31 days.
    assert 26 * minutes + 32 * hours + total < 1_000_000


async def test_a_read_is_refused_with_what_is_wrong(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    wrongs: list[dict[str, Any]] = [{"step": "day"}, {"function": ""}]
    for wrong in [*wrongs, {"since": datetime(2024, 1, 1)}]:  # noqa: DTZ001
        with pytest.raises(InvalidArgument):
            await queue.history(**wrong)
    assert await queue.history(function=uuid.uuid4().hex) == []


def test_quantiles_are_limits_of_buckets() -> None:
    nothing = Times((0,) * BUCKETS, 0.0)
    assert nothing.quantile_s(0.5) is None
    quick = Times((9, 0, 1, *[0] * (BUCKETS - 3)), 0.01)
    assert (quick.quantile_s(0.9), quick.quantile_s(0.99)) == (0.001, 0.005)
    long = Times((*[0] * (BUCKETS - 1), 1), 9999.0)
    assert long.quantile_s(0.5) == float("inf")
