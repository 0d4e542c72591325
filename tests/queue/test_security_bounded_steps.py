"""No script holds the queue's server for long, whatever has gathered there: it goes on next time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from tests.support.bounded_steps import Act, assert_short_steps
from tests.support.engine import QUICK, burst
from tests.support.llm import submit
from tests.support.options import endpoint_limits, options_of, retry_schedule
from tests.support.queues import queue_of, stores_of
from worker import JobQueue, Priority
from worker.errors import Permanent
from worker.llm.answers import Answer
from worker.llm.grouping import Group
from worker.llm.options import FlushRules
from worker.queue.calls import Call
from worker.webhooks.attempts import Attempt, ClaimedDelivery, Throttled
from worker.webhooks.client import DELIVER_WEBHOOK
from worker.webhooks.limits import EndpointLimits, endpoint_of, host_of
from worker.webhooks.policy import Outcome, decide

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"
GROUP = Group("openai", CHAT, "m")
LARGE = 10**9
URL = "https://hooks.example.com/a"
LIMITS = endpoint_limits(concurrency=64)


async def part(_ctx: dict[str, Any], number: int) -> int:
    return number


async def whole(_ctx: dict[str, Any], numbers: list[int]) -> int:
    return sum(numbers)


async def fail(_ctx: dict[str, Any], _number: int) -> None:
    raise Permanent("no")


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix, options_of(llm_batch_max_age_s=3600))


async def assert_short(queue: JobQueue, act: Act, prepare: Act | None = None) -> None:
    stores = stores_of(queue)
    await assert_short_steps(stores.client, stores.keys.prefix, act, prepare)


async def fill(client: Any, key: str, members: Iterator[tuple[str, float]]) -> None:
    rows = list(members)
    for at in range(0, len(rows), 5000):
        await client.zadd(key, dict(rows[at : at + 5000]))


def now_ms() -> int:
    return int(time.time() * 1000)


async def end(queue: JobQueue, id_: str, status: int, limits: EndpointLimits = LIMITS) -> list[str]:
    """One attempt, and how it ended."""
    found = await stores_of(queue).attempts.begin(id_, datetime.now(UTC), limits, max_attempts=10)
    assert isinstance(found, ClaimedDelivery), found
    verdict = decide(
        Outcome(status=status), attempt=1, schedule=retry_schedule(max_attempts=1), rng=lambda: 0.5
    )
    tried = Attempt(datetime.now(UTC), status, "", 1.0)
    return await stores_of(queue).attempts.record(
        id_, found.attempt, tried, verdict, limits, draw=0.5, max_attempts=10
    )


# -- what a script does at a time ----------------------------------------------------


async def test_many_jobs_are_stored_in_short_steps(queue: JobQueue) -> None:
    async def many() -> None:
        await queue.enqueue_many([Call("f", (n,)) for n in range(2000)])

    async def gathering() -> None:
        await queue.jobs.gather([Call("f", (n,)) for n in range(1000)], then=Call("g"))

    await assert_short(queue, many)
    await assert_short(queue, gathering)


async def test_requests_are_taken_in_and_sealed_in_short_steps(queue: JobQueue) -> None:
    async def take_in() -> None:
        await submit(queue, "openai", *(f"q{n}" for n in range(1000)), dedupe=True)

    numbers = iter(range(100))

    async def seal() -> None:
        await submit(queue, "openai", *(f"{n}" for n in range(1000)), dedupe=False)
        batch_id = f"b{next(numbers)}"
        job = stores_of(queue).prepared.batch(batch_id)
        made = await stores_of(queue).batches.seal(
            GROUP,
            batch_id,
            rules=FlushRules(1000, LARGE, 0, 0),
            full_only=False,
            job=job,
            job_keys=stores_of(queue).keys.job_keys(job.id, Priority.DEFAULT),
        )
        assert made == 1000

    await assert_short(queue, take_in)
    await assert_short(queue, seal)


async def test_a_request_leaves_the_middle_of_a_long_line_in_a_short_step(queue: JobQueue) -> None:
    pending = stores_of(queue).keys.llm_pending(GROUP.id)
    (first,) = await submit(queue, "openai", "first")
    for at in range(100):
        await stores_of(queue).client.rpush(pending, *(f"gone{at}:{n}" for n in range(1000)))
    middle = await submit(queue, "openai", *(f"m{n}" for n in range(8)))
    for at in range(100):
        await stores_of(queue).client.rpush(pending, *(f"late{at}:{n}" for n in range(1000)))
    left = iter(middle)

    async def cancel() -> None:
        assert await queue.llm.cancel(next(left))

    await assert_short(queue, cancel)
    # What is left in the line is passed over, and what waits behind it is sealed.
    job = stores_of(queue).prepared.batch("b")
    keys = stores_of(queue).keys.job_keys(job.id, Priority.DEFAULT)
    rules = FlushRules(1000, LARGE, 0, 0)

    async def seal() -> int:
        return await stores_of(queue).batches.seal(
            GROUP, "b", rules=rules, full_only=False, job=job, job_keys=keys
        )

    await assert_short(queue, seal)
    sealed = [id_ async for page in stores_of(queue).batches.ids("b") for id_ in page]
    assert sealed == [first, *left]
    assert (await stores_of(queue).batches.waiting(GROUP))["bytes"] == 0
    assert await stores_of(queue).batches.groups() == []


async def test_a_request_with_two_places_is_sealed_once(queue: JobQueue) -> None:
    (id_,) = await submit(queue, "openai", "a")
    await stores_of(queue).client.rpush(stores_of(queue).keys.llm_pending(GROUP.id), id_)
    for batch_id, size in (("b", 1), ("c", 0)):
        job = stores_of(queue).prepared.batch(batch_id)
        made = await stores_of(queue).batches.seal(
            GROUP,
            batch_id,
            rules=FlushRules(1, LARGE, 0, 0),
            full_only=False,
            job=job,
            job_keys=stores_of(queue).keys.job_keys(job.id, Priority.DEFAULT),
        )
        assert made == size


async def test_a_group_with_left_places_is_given_up_whole(queue: JobQueue) -> None:
    await stores_of(queue).client.rpush(
        stores_of(queue).keys.llm_pending(GROUP.id), *(f"gone{n}" for n in range(700))
    )
    await submit(queue, "openai", "a", "b")
    assert await queue.llm.batches.cancel_group("openai", CHAT, "m") == 2
    assert await stores_of(queue).batches.waiting_ids(GROUP) == []


async def callbacks(queue: JobQueue, count: int) -> str:
    (id_,) = await submit(queue, "openai", "told", dedupe=False)
    body = stores_of(queue).prepared.callback_body("https://example.com/told")
    for at in range(0, count, 1000):
        more = {f"{n:016x}": body for n in range(at, min(count, at + 1000))}
        await stores_of(queue).client.hset(stores_of(queue).keys.llm_callback(id_), mapping=more)
    return id_


async def test_thirty_thousand_callbacks_are_made_in_short_steps(queue: JobQueue) -> None:
    asked: list[str] = []

    async def ask() -> None:
        asked.append(await callbacks(queue, 30_000 if not asked else 10_000))

    async def answer() -> None:
        await stores_of(queue).requests.answer(asked[-1], Answer(body={}))

    before = await stores_of(queue).client.zcard(stores_of(queue).keys.queue())
    await assert_short(queue, answer, ask)
    assert await stores_of(queue).client.zcard(stores_of(queue).keys.queue()) >= before + 30_000
    tells = [stores_of(queue).keys.llm_callback(id_) for id_ in asked]
    assert not await stores_of(queue).client.exists(*tells, stores_of(queue).keys.llm_callbacks)


async def test_callbacks_wait_for_room_in_the_queue(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix, options_of(llm_batch_max_age_s=3600, queue_max_length=150))
    ids = [await callbacks(queue, 300), await callbacks(queue, 5)]
    for id_ in ids:
        await stores_of(queue).requests.answer(id_, Answer(kind="invalid"))

    async def waiting() -> int:
        return sum([await client.zcard(stores_of(queue).keys.queue(each)) for each in Priority])

    made: set[bytes] = set()
    for _ in range(100):
        # HSCAN hands out whole buckets, so that a step may be a few over.
        assert await waiting() <= 160
        made |= set(await client.zrange(stores_of(queue).keys.queue(), 0, -1))
        if await stores_of(queue).requests.send_callbacks():
            break
        await client.zremrangebyrank(stores_of(queue).keys.queue(), 0, 59)
    made |= set(await client.zrange(stores_of(queue).keys.queue(), 0, -1))
    told = {name for name in made if name.startswith(b"llm:callback:")}
    assert len(told) == 305
    # Kept for a retry, as the failed request is.
    assert await client.pttl(stores_of(queue).keys.llm_callback(ids[0])) > 0


async def test_the_parts_of_a_gathering_end_in_short_steps(queue: JobQueue) -> None:
    async def gather() -> None:
        job = await queue.jobs.gather([Call("part", (n,)) for n in range(500)], then=Call("whole"))
        await burst(
            stores_of(queue).client, stores_of(queue).keys.prefix, [part, whole], max_jobs=100
        )
        assert await job.result(timeout_s=10) == sum(range(500))

    await assert_short(queue, gather)


# -- what has gathered on the server ---------------------------------------------------


async def test_old_ends_of_deliveries_are_trimmed_in_short_steps(queue: JobQueue) -> None:
    index = stores_of(queue).keys.webhook_ended("delivered")

    async def gather() -> None:
        await fill(
            stores_of(queue).client, index, ((f"msg_{n:032d}", float(n)) for n in range(200_000))
        )

    async def deliver() -> None:
        await end(queue, await queue.send_webhook(URL, {}, event_type="x"), 200)

    await assert_short(queue, deliver, gather)
    before = await stores_of(queue).client.zcard(index)
    await deliver()
    assert await stores_of(queue).client.zcard(index) == before - 499


async def test_many_ends_of_one_endpoint_wake_its_line_in_short_steps(queue: JobQueue) -> None:
    limits = replace(LIMITS, concurrency=64)

    async def round_trip() -> None:
        ids = [
            await queue.send_webhook(URL, {}, event_type="x", on_end="f", ordering_key=f"k{n}")
            for n in range(64)
        ]
        await asyncio.gather(*(end(queue, id_, 200, limits) for id_ in ids))

    for _ in range(500):
        parked = await queue.send_webhook(URL, {}, event_type="x")
        await stores_of(queue).attempts.begin(
            parked, datetime.now(UTC), replace(limits, concurrency=1), max_attempts=10
        )
    await stores_of(queue).client.delete(
        stores_of(queue).keys.webhook_slots(endpoint_of(URL, None))
    )
    await assert_short(queue, round_trip)


async def test_many_ends_at_a_full_host_serve_its_line_in_short_steps(queue: JobQueue) -> None:
    client, keys = stores_of(queue).client, stores_of(queue).keys
    names, number = [f"e{n}" for n in range(5000)], count()

    async def crowd() -> None:
        await fill(client, keys.webhook_line(host_of(URL)), ((name, 1.0) for name in names))
        for name in names[:500]:
            # Half of them wait with deliveries that are gone.
            await client.zadd(keys.webhook_parked(name), {f"gone{n}": 1 for n in range(20)})

    async def round_trip() -> None:
        ids = [
            await queue.send_webhook(f"{URL}/{next(number)}", {}, event_type="x") for _ in range(64)
        ]
        await asyncio.gather(*(end(queue, id_, 200, LIMITS) for id_ in ids))

    await assert_short(queue, round_trip, crowd)


async def test_an_order_of_deleted_deliveries_is_left_in_short_steps(queue: JobQueue) -> None:
    id_ = await queue.send_webhook(URL, {}, event_type="x", ordering_key="k")
    order = await stores_of(queue).client.hget(stores_of(queue).keys.webhook(id_), "order")
    line = f"{stores_of(queue).keys.prefix}webhook-order:{order.decode()}"

    async def delete() -> None:
        await fill(stores_of(queue).client, line, ((f"gone{n}", float(n)) for n in range(50_000)))

    async def look() -> None:
        found = await stores_of(queue).attempts.begin(
            id_, datetime.now(UTC), LIMITS, max_attempts=10
        )
        assert isinstance(found, Throttled)

    await assert_short(queue, look, delete)
    await stores_of(queue).client.zremrangebyrank(line, 50, -2)
    assert isinstance(
        await stores_of(queue).attempts.begin(id_, datetime.now(UTC), LIMITS, max_attempts=10),
        ClaimedDelivery,
    )


async def test_deliveries_without_a_job_are_ended_in_short_steps(queue: JobQueue) -> None:
    async def rescue() -> None:
        ids = [
            await queue.send_webhook(URL, {}, event_type="x", on_end="f", ordering_key=f"k{n}")
            for n in range(600)
        ]
        for id_ in ids:
            await stores_of(queue).client.delete(stores_of(queue).keys.job(f"webhook:{id_}"))
        ended: list[str] = []
        while len(ended) < len(ids):
            _, more = await stores_of(queue).attempts.end_jobless(seen_s=-1)
            assert more
            ended += more

    await assert_short(queue, rescue)


async def test_the_jobs_of_every_state_are_counted_in_short_steps(queue: JobQueue) -> None:
    client, keys = stores_of(queue).client, stores_of(queue).keys
    async with client.pipeline(transaction=False) as pipe:
        for n in range(5000):
            pipe.hset(keys.dead_job(f"d{n}"), "queue", 1 + n % 4)
        await pipe.execute()
    await fill(client, keys.dead, ((f"d{n}", float(n)) for n in range(5000)))
    await fill(client, f"{keys.queue()}:running", ((f"r{n}", float(n)) for n in range(3000)))
    async with client.pipeline(transaction=False) as pipe:
        for n in range(3000):
            pipe.set(keys.in_progress(f"r{n}"), f"w:1|{1 + n % 4}|5|0")
            pipe.hset(keys.parked, f"p{n}", 1)
        await pipe.execute()
    for at, priority in enumerate(Priority):
        jobs = ((f"p{n}", float(n)) for n in range(at, 3000, 4))
        await fill(client, keys.queue(priority), jobs)
    await assert_short(queue, queue.stats)
    await client.config_resetstat()
    for counts in (await queue.stats()).values():
        assert (counts["dead"], counts["running"], counts["parked"]) == (1250, 750, 750)
    # A read of a dead letter each; the time of one command depends on the machine.
    calls = {name: row["calls"] for name, row in (await client.info("commandstats")).items()}
    scripts = calls["cmdstat_evalsha"]
    assert sum(calls.values()) <= 300 * scripts


async def test_dead_letters_over_the_cap_go_in_short_steps(queue: JobQueue) -> None:
    client, keys = stores_of(queue).client, stores_of(queue).keys
    now = now_ms()

    async def gather() -> None:
        await fill(client, keys.dead, ((f"old{n}", float(n)) for n in range(100_000)))
        await fill(client, keys.dead, ((f"d{n}", float(now - 20_000 + n)) for n in range(20_000)))
        for n in range(300):
            await client.hset(keys.dead_job(f"d{n}"), mapping={"body": b"x" * 100_000, "queue": 3})

    async def die() -> None:
        await queue.enqueue_many([Call("fail", (n,)) for n in range(100)])
        options = replace(QUICK, dead_max=1000)
        await burst(client, keys.prefix, [fail], max_jobs=100, options=options)

    await assert_short(queue, die, gather)
    before = await client.zcard(keys.dead)
    await die()
    assert await client.zcard(keys.dead) < before
    assert await client.zscore(keys.dead, "old0") is None
    assert await client.zscore(keys.dead, "d19999") is not None


async def test_old_dead_letters_are_looked_for_in_short_steps(queue: JobQueue) -> None:
    await fill(
        stores_of(queue).client,
        stores_of(queue).keys.dead,
        ((f"d{n}", now_ms() + n) for n in range(200_000)),
    )
    long_ago = datetime.fromtimestamp(1, UTC)

    async def look() -> None:
        assert await queue.dead.purge(before=long_ago) == 0

    await assert_short(queue, look)


async def test_the_rescuer_reads_no_bodies_of_dead_letters(queue: JobQueue) -> None:
    client, keys = stores_of(queue).client, stores_of(queue).keys
    for n, name in enumerate(("other", DELIVER_WEBHOOK)):
        fields = {"name": name, "reason": "failed", "body": b"x" * 5_000_000}
        for prefix in ("webhook:", "job:"):
            await client.hset(keys.dead_job(f"{prefix}{n}"), mapping=fields)
            await client.zadd(keys.dead, {f"{prefix}{n}": n})
    before = (await client.info("stats"))["total_net_output_bytes"]
    found = [row async for row in queue.dead.names(("webhook:",))]
    assert (await client.info("stats"))["total_net_output_bytes"] - before < 100_000
    assert found == [("webhook:0", "other", "failed"), ("webhook:1", DELIVER_WEBHOOK, "failed")]


# -- what is kept has a cap ---------------------------------------------------------------


async def test_disabled_endpoints_are_capped_and_aged(queue: JobQueue) -> None:
    client, keys = stores_of(queue).client, stores_of(queue).keys
    by_hand = "https://hooks.example.com/by-hand"
    assert await queue.webhooks.disable(by_hand)
    now = now_ms()
    await fill(client, keys.webhook_disabled, ((f"e{n}", float(now - n)) for n in range(10_400)))
    for n in (0, 10_399):
        await client.hset(keys.webhook_endpoint(f"e{n}"), "disabled", now)

    async def gone() -> None:
        url = f"https://hooks.example.com/{now_ms()}-{await client.incr(f'{keys.prefix}n')}"
        assert await end(queue, await queue.send_webhook(url, {}, event_type="x"), 410) == [
            "endpoint_disabled"
        ]

    await assert_short(queue, gone)
    for _ in range(60):
        await gone()
        if await client.zcard(keys.webhook_disabled) <= 10_001:
            break
    assert await client.zcard(keys.webhook_disabled) == 10_001
    assert not await client.exists(keys.webhook_endpoint("e10399"))
    shown = await queue.webhooks.disabled_endpoints()
    assert (shown[0].name, shown[0].reason) == (by_hand, "by_hand")
    for endpoint in shown[1:3]:
        assert await client.pttl(keys.webhook_endpoint(endpoint.key)) != -1 or endpoint.name
    newest = (await client.zrange(keys.webhook_disabled, -1, -1))[0].decode()
    assert await client.pttl(keys.webhook_endpoint(newest)) > 0
    assert await queue.webhooks.enable(by_hand)


async def test_endpoints_that_fail_are_capped_as_well(queue: JobQueue) -> None:
    client, keys = stores_of(queue).client, stores_of(queue).keys
    index = f"{keys.prefix}webhook-failing"
    old = now_ms() - 91 * 86_400_000
    await fill(client, index, ((f"e{n}", float(old + n)) for n in range(100)))
    await client.hset(keys.webhook_endpoint("e0"), "failures", 1)
    limits = replace(LIMITS, breaker_failures=0)
    for n in range(6):
        id_ = await queue.send_webhook(f"{URL}/{n}", {}, event_type="x")
        await end(queue, id_, 500, limits)
    assert await client.zcard(index) == 6
    assert not await client.exists(keys.webhook_endpoint("e0"))
    id_ = await queue.send_webhook(f"{URL}/0", {}, event_type="x")
    await end(queue, id_, 200, limits)
    assert await client.zcard(index) == 5


async def test_what_an_operator_disabled_is_not_forgotten(queue: JobQueue) -> None:
    client, keys = stores_of(queue).client, stores_of(queue).keys
    await queue.webhooks.disable(endpoint_id="t1")
    name = "id:t1"
    assert await client.pttl(keys.webhook_endpoint(name)) == -1
    now = now_ms()
    await fill(client, keys.webhook_disabled, ((f"e{n}", float(now)) for n in range(10_100)))
    for n in range(8):
        await end(queue, await queue.send_webhook(f"{URL}/{n}", {}, event_type="x"), 410)
    assert await client.zscore(keys.webhook_disabled, name) is not None
    found = await queue.webhooks.disabled_endpoints()
    assert found[0].key == name
    assert found[0].disabled_at is not None
    assert abs(found[0].disabled_at.timestamp() - time.time()) < 60


async def test_the_events_of_endpoints_are_capped(queue: JobQueue) -> None:
    client, keys = stores_of(queue).client, stores_of(queue).keys
    async with client.pipeline(transaction=False) as pipe:
        for n in range(3000):
            pipe.xadd(keys.webhook_events, {"kind": "disabled", "endpoint": f"e{n}"})
        await pipe.execute()
    (id_,) = [await queue.send_webhook(URL, {}, event_type="x")]
    await end(queue, id_, 410)
    assert (await client.xrevrange(keys.webhook_events, count=1))[0][1][b"endpoint"] != b"e2999"
    # A stream is trimmed by whole nodes of a hundred entries.
    assert await client.xlen(keys.webhook_events) < 1200
