"""Tests the limits over all workers: slots, rate, breaker, pauses, order, disabled endpoints."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from cache import NotEncodable
from cache.connection.scripts import load
from tests.support.options import endpoint_limits, options_of, retry_schedule
from tests.support.queues import open_queue, queue_of, stores_of
from tests.support.wait import eventually
from tests.support.workers import quick_settings
from worker import InvalidArgument, NotFound, QueueMemoryFull
from worker.app.composition import Stores
from worker.client import JobQueue
from worker.webhooks.attempts import Attempt, ClaimedDelivery, EndedUnsent, ScriptFailed, Throttled
from worker.webhooks.deliveries import Selection
from worker.webhooks.limits import EndpointLimits, endpoint_of
from worker.webhooks.policy import (
    BreakerSign,
    DeliveryState,
    EndpointSign,
    Outcome,
    Verdict,
    decide,
)

pytestmark = pytest.mark.integration

ATTEMPT = load("worker.webhooks", "attempt_deliveries", "worker.queue")
URL = "https://hooks.example.com/a"
LIMITS = endpoint_limits(concurrency=2, breaker_failures=3, open_s=60, open_max_s=120, slot_s=60)
SCHEDULE = retry_schedule(max_attempts=10, base_s=0.001)


@dataclass
class Lab:
    """Uses the store like a worker, but without HTTP: the test gives the outcomes."""

    queue: JobQueue
    limits: EndpointLimits = LIMITS

    @property
    def stores(self) -> Stores:
        return stores_of(self.queue)

    async def send(self, url: str = URL, **more: Any) -> str:
        return await self.queue.send_webhook(url, {}, event_type="x", **more)

    async def claim(self, id_: str) -> Any:
        return await self.stores.attempts.begin(
            id_, datetime.now(UTC), self.limits, max_attempts=10
        )

    async def go(self, id_: str) -> ClaimedDelivery:
        found = await self.claim(id_)
        assert isinstance(found, ClaimedDelivery), found
        return found

    async def held(self, id_: str) -> Throttled:
        found = await self.claim(id_)
        assert isinstance(found, Throttled), found
        return found

    async def end(
        self, claimed: ClaimedDelivery, *, wait: bool = False, **outcome: Any
    ) -> tuple[Verdict, list[str]]:
        """Record an outcome; without `wait` the retry is due at once."""
        ended = Outcome(**outcome)
        verdict = decide(
            ended,
            attempt=claimed.charged,
            schedule=SCHEDULE,
            rng=lambda: 0.5,
            left_s=claimed.left_s,
            internal_failures=claimed.internal_failures,
        )
        attempt = Attempt(datetime.now(UTC), ended.status, ended.error, 1.0)
        events = await self.stores.attempts.record(
            claimed.id, claimed.attempt, attempt, verdict, self.limits, draw=0.5, max_attempts=10
        )
        if not wait:
            await self.stores.client.hdel(self.stores.keys.webhook(claimed.id), "after")
        return verdict, events

    async def attempt(self, id_: str, **outcome: Any) -> list[str]:
        _, events = await self.end(await self.go(id_), **outcome)
        return events

    async def state(self, id_: str) -> str:
        return (await self.queue.delivery(id_)).state.value

    async def due_in_s(self, id_: str) -> float:
        keys = self.stores.keys
        job = await self.stores.client.hget(keys.webhook(id_), "job")
        due = await self.stores.client.zscore(keys.queue(), job)
        seconds, micros = await self.stores.client.time()
        return float(due / 1000 - seconds - micros / 1e6)

    async def tick(self) -> None:
        """Wait until the server's clock shows another millisecond, so that times differ."""
        start = await self._ms()

        async def later() -> bool:
            return await self._ms() > start

        await eventually(later)

    async def _ms(self) -> int:
        seconds, micros = await self.stores.client.time()
        return int(seconds * 1000 + micros // 1000)

    async def trip(self) -> None:
        for _ in range(LIMITS.breaker_failures):
            await self.attempt(await self.send(), status=500)


@pytest.fixture
async def lab(client: Any, prefix: str) -> Lab:
    return Lab(queue_of(client, prefix))


# -- room ----------------------------------------------------------------------


async def test_an_endpoint_limits_concurrent_attempts(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(4)]
    first, _ = await lab.go(ids[0]), await lab.go(ids[1])
    assert (await lab.held(ids[2])).reason == "busy"
    assert (await lab.held(ids[3])).reason == "busy"
    assert (await lab.queue.delivery(ids[2])).attempt_count == 0
    await lab.end(first, status=200)
    await lab.go(ids[2])
    assert (await lab.held(ids[3])).reason == "busy"


async def test_an_end_wakes_the_longest_parked_deliveries(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(6)]
    running = [await lab.go(id_) for id_ in ids[:2]]
    later = datetime.now(UTC) + timedelta(hours=1)
    for id_ in ids[2:]:
        await lab.tick()
        await lab.held(id_)
        # The engine returns the job to its queue with a delay.
        job = await lab.stores.client.hget(lab.stores.keys.webhook(id_), "job")
        await lab.stores.client.zadd(lab.stores.keys.queue(), {job: later.timestamp() * 1000})
    await lab.end(running[0], status=200)
    assert [await lab.due_in_s(id_) <= 0 for id_ in ids[2:]] == [True, True, False, False]


async def test_a_new_delivery_is_parked_behind_others_without_a_run(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(3)]
    for id_ in ids[:2]:
        await lab.go(id_)
    await lab.held(ids[2])
    late = await lab.send()
    assert await lab.due_in_s(late) > 0.5
    elsewhere = await lab.send("https://other.example.com/a")
    assert await lab.due_in_s(elsewhere) <= 0


async def test_a_dead_workers_slot_is_free_after_its_lease(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(3)]
    # A live slot keeps the key from expiring as a whole.
    await lab.go(ids[0])
    lab.limits = replace(LIMITS, slot_s=0.05)
    await lab.go(ids[1])
    lab.limits = LIMITS

    async def free() -> Any:
        found = await lab.claim(ids[2])
        return found if isinstance(found, ClaimedDelivery) else None

    await eventually(free)


async def test_a_run_after_a_crash_keeps_its_slot(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(2)]
    for id_ in ids:
        await lab.go(id_)
    again = await lab.go(ids[0])
    assert again.attempt == 2
    attempts = (await lab.queue.delivery(ids[0])).attempts
    assert [a.error for a in attempts] == ["interrupted"] * 2


async def test_attempts_interrupted_by_crashes_count(lab: Lab) -> None:
    id_ = await lab.send()
    for _ in range(10):
        await lab.go(id_)
    assert await lab.claim(id_) == EndedUnsent(DeliveryState.DEAD, "attempts_used_up")
    assert len((await lab.queue.delivery(id_)).attempts) == 10


async def test_a_rate_spaces_attempts_evenly(lab: Lab) -> None:
    lab.limits = replace(LIMITS, concurrency=100, rate_per_s=0.01)
    ids = [await lab.send() for _ in range(4)]
    await lab.go(ids[0])
    held = [await lab.held(id_) for id_ in ids[1:]]
    assert [h.reason for h in held] == ["rate"] * 3
    assert [h.wait_s for h in held] == pytest.approx([100, 200, 300], abs=30)
    record = lab.stores.keys.webhook(ids[1])
    reserved = float(await lab.stores.client.hget(record, "reserved"))
    await lab.stores.client.hset(record, "reserved", round(reserved - held[0].wait_s * 1000))
    await lab.go(ids[1])


async def test_an_endpoint_id_has_limits_of_its_own(lab: Lab) -> None:
    for _ in range(2):
        await lab.go(await lab.send(endpoint_id="tenant-1"))
    assert (await lab.held(await lab.send(endpoint_id="tenant-1"))).reason == "busy"
    await lab.go(await lab.send(endpoint_id="tenant-2"))
    await lab.go(await lab.send())


# -- the breaker -----------------------------------------------------------------


async def test_failures_in_a_row_open_the_breaker_and_stop_attempts(lab: Lab) -> None:
    waiting = await lab.send()
    assert await lab.attempt(await lab.send(), status=500) == []
    assert await lab.attempt(await lab.send(), error="timeout") == []
    assert await lab.attempt(await lab.send(), error="connect") == ["circuit_opened"]
    held = await lab.held(waiting)
    assert held.reason == "closed"
    assert 40 < held.wait_s < 80
    assert (await lab.queue.delivery(waiting)).attempt_count == 0
    # A new delivery waits without a worker.
    assert await lab.due_in_s(await lab.send()) > 40
    endpoint = await lab.queue.webhooks.endpoint(URL)
    assert (endpoint.breaker, endpoint.parked) == ("open", 2)
    events = await lab.queue.webhooks.events()
    assert [(e.kind, e.subject) for e in events] == [("circuit_opened", endpoint_of(URL, None))]


@pytest.mark.parametrize("status", [200, 404, 422, 429])
async def test_any_answer_resets_the_failure_count(lab: Lab, status: int) -> None:
    for outcome in (500, 500, status, 500, 500):
        assert "circuit_opened" not in await lab.attempt(await lab.send(), status=outcome)


async def test_a_half_open_breaker_allows_one_probe_and_closes_on_success(
    lab: Lab,
) -> None:
    ids = [await lab.send() for _ in range(5)]
    lab.limits = replace(LIMITS, open_s=0.05)
    await lab.trip()

    async def probe() -> Any:
        found = await lab.claim(ids[0])
        return found if isinstance(found, ClaimedDelivery) else None

    claimed = await eventually(probe)
    for id_ in ids[1:]:
        assert (await lab.held(id_)).reason == "probing"
        job = await lab.stores.client.hget(lab.stores.keys.webhook(id_), "job")
        later = datetime.now(UTC) + timedelta(hours=1)
        await lab.stores.client.zadd(lab.stores.keys.queue(), {job: later.timestamp() * 1000})
    lab.limits = replace(lab.limits, concurrency=5)
    _, events = await lab.end(claimed, status=200)
    assert events == ["circuit_closed"]
    assert (await lab.queue.webhooks.endpoint(URL)).breaker == "closed"
    # As many as there are slots, not two as after any other end.
    assert [await lab.due_in_s(id_) <= 0 for id_ in ids[1:]] == [True] * 4
    await lab.go(ids[1])


async def test_a_failed_probe_opens_the_breaker_for_twice_as_long(lab: Lab) -> None:
    id_ = await lab.send()
    lab.limits = replace(LIMITS, open_s=0.05)
    await lab.trip()

    async def probe() -> Any:
        found = await lab.claim(id_)
        return found if isinstance(found, ClaimedDelivery) else None

    claimed = await eventually(probe)
    lab.limits = replace(LIMITS, open_s=30, open_max_s=1000)
    _, events = await lab.end(claimed, status=500)
    assert events == ["circuit_opened"]
    endpoint = await lab.queue.webhooks.endpoint(URL)
    assert endpoint.open_until is not None
    assert 40 < (endpoint.open_until - datetime.now(UTC)).total_seconds() < 65


async def test_our_own_failures_open_no_breaker_and_use_up_no_attempt(lab: Lab) -> None:
    id_ = await lab.send()
    for number in range(1, 6):
        claimed = await lab.go(id_)
        assert (claimed.attempt, claimed.charged, claimed.internal_failures) == (
            number,
            1,
            number - 1,
        )
        verdict, events = await lab.end(claimed, error="no_route", internal=True)
        assert (verdict.state, events) == (DeliveryState.WAITING, [])
    assert (await lab.go(id_)).charged == 1
    shown = await lab.queue.delivery(id_)
    assert (shown.attempt_count, shown.uncharged_count) == (6, 5)


async def test_after_our_own_failure_of_a_probe_the_next_one_probes(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(2)]
    lab.limits = replace(LIMITS, open_s=0.05)
    await lab.trip()

    async def probe() -> Any:
        found = await lab.claim(ids[0])
        return found if isinstance(found, ClaimedDelivery) else None

    claimed = await eventually(probe)
    assert (await lab.held(ids[1])).reason == "probing"
    await lab.end(claimed, error="no_route", internal=True)
    await lab.go(ids[1])


async def test_another_outcome_resets_the_count_of_our_own_failures(lab: Lab) -> None:
    id_ = await lab.send()
    for _ in range(2):
        await lab.attempt(id_, error="no_route", internal=True)
    await lab.attempt(id_, status=500)
    claimed = await lab.go(id_)
    assert (claimed.internal_failures, claimed.charged, claimed.attempt) == (0, 2, 4)


# -- many in one call ----------------------------------------------------------------


async def test_ends_in_one_call_count_like_separate_ones(lab: Lab) -> None:
    lab.limits = replace(LIMITS, concurrency=10)
    running = [await lab.go(await lab.send()) for _ in range(5)]
    statuses = (500, 500, 200, 500, 500)
    ends = [
        lab.end(claimed, wait=True, status=status)
        for claimed, status in zip(running, statuses, strict=True)
    ]
    assert [events for _, events in await asyncio.gather(*ends)] == [[]] * 5
    assert (await lab.queue.webhooks.endpoint(URL)).failures == 2


async def test_a_begin_sees_the_ends_of_the_same_call(
    lab: Lab,
) -> None:
    waiting = await lab.send()
    running = [await lab.go(await lab.send()) for _ in range(2)]
    lab.limits = replace(LIMITS, breaker_failures=2)
    *_, found = await asyncio.gather(
        *(lab.end(claimed, wait=True, status=500) for claimed in running), lab.claim(waiting)
    )
    assert isinstance(found, Throttled)
    assert found.reason == "closed"

    other = "https://other.example.com/a"
    gone, next_ = await lab.go(await lab.send(other)), await lab.send(other)
    _, found = await asyncio.gather(lab.end(gone, status=410), lab.claim(next_))
    assert found == EndedUnsent(DeliveryState.DISABLED, "endpoint_disabled")


# -- slowing down ------------------------------------------------------------------


async def test_retry_after_pauses_its_endpoint(lab: Lab) -> None:
    other = await lab.send()
    verdict, _ = await lab.end(await lab.go(await lab.send()), status=429, retry_after_s=100)
    assert 100 <= verdict.wait_s <= 110
    held = await lab.held(other)
    assert held.reason == "closed"
    assert 80 < held.wait_s < 110


async def test_a_very_long_retry_after_delays_only_its_delivery(lab: Lab) -> None:
    other = await lab.send()
    verdict, _ = await lab.end(await lab.go(await lab.send()), status=503, retry_after_s=50_000)
    assert verdict.wait_s >= 50_000
    assert (await lab.held(other)).wait_s < LIMITS.open_max_s + 5


async def test_overload_halves_the_concurrency_and_success_raises_it(
    lab: Lab,
) -> None:
    lab.limits = replace(LIMITS, concurrency=8)
    await lab.attempt(await lab.send(), status=429)
    assert (await lab.queue.webhooks.endpoint(URL)).concurrency == 4
    running = [await lab.go(await lab.send()) for _ in range(4)]
    assert (await lab.held(await lab.send())).reason == "busy"
    for claimed in running:
        await lab.end(claimed, status=200)
    found = (await lab.queue.webhooks.endpoint(URL)).concurrency
    assert found is not None
    assert 4.5 < found < 5.5


async def test_a_burst_of_overload_answers_cuts_once(lab: Lab) -> None:
    lab.limits = replace(LIMITS, concurrency=8, breaker_failures=0)
    running = [await lab.go(await lab.send()) for _ in range(8)]
    # All of them were under way at the first overload answer.
    await asyncio.gather(*(lab.end(claimed, wait=True, status=503) for claimed in running))
    endpoint = await lab.queue.webhooks.endpoint(URL)
    assert (endpoint.concurrency, endpoint.paused_until) == (4, None)


@pytest.mark.parametrize(("between", "rests"), [(None, True), (200, False), (422, False)])
async def test_repeated_overload_without_an_answer_pauses_the_endpoint(
    lab: Lab, between: int | None, rests: bool
) -> None:
    lab.limits = replace(LIMITS, concurrency=8, breaker_failures=0)
    key = lab.stores.keys.webhook_limits(endpoint_of(URL, None))
    for status in (503, 429, between, 503):
        if status is not None:
            # Make the last cut older than a second.
            await lab.stores.client.hset(key, "cut", 1)
            await lab.attempt(await lab.send(), status=status)
    endpoint = await lab.queue.webhooks.endpoint(URL)
    assert (endpoint.paused_until is not None) == rests
    if rests:
        assert endpoint.concurrency == 1
        assert (await lab.held(await lab.send())).reason == "closed"


# -- order -----------------------------------------------------------------------


async def test_deliveries_of_one_ordering_key_are_sent_in_order(lab: Lab) -> None:
    ids = [await lab.send(ordering_key="agent-1") for _ in range(3)]
    other = await lab.send(ordering_key="agent-2")
    assert (await lab.held(ids[1])).reason == "ordered"
    claimed = await lab.go(ids[0])
    await lab.go(other)
    await lab.end(claimed, status=500)
    # The first one waits for its retry, and the rest wait for it.
    assert (await lab.held(ids[1])).reason == "ordered"
    await lab.attempt(ids[0], status=200)
    assert await lab.due_in_s(ids[1]) <= 0
    assert (await lab.held(ids[2])).reason == "ordered"
    await lab.attempt(ids[1], status=410)
    assert isinstance(await lab.claim(ids[2]), EndedUnsent)


async def test_a_missing_delivery_blocks_no_order(lab: Lab) -> None:
    ids = [await lab.send(ordering_key="k") for _ in range(2)]
    await lab.stores.client.delete(lab.stores.keys.webhook(ids[0]))
    await lab.go(ids[1])


# -- disabling and replay ----------------------------------------------------------


async def test_410_disables_its_url_and_later_deliveries_can_be_replayed(lab: Lab) -> None:
    before = await lab.send()
    assert await lab.attempt(await lab.send(URL + "#part"), status=410) == ["endpoint_disabled"]
    assert await lab.claim(before) == EndedUnsent(DeliveryState.DISABLED, "endpoint_disabled")
    after = await lab.send()
    await lab.claim(after)
    assert [await lab.state(i) for i in (before, after)] == ["disabled", "disabled"]
    assert (await lab.queue.delivery(after)).attempts == ()
    await lab.go(await lab.send("https://hooks.example.com/b"))
    (found,) = await lab.queue.webhooks.disabled_endpoints()
    assert (found.reason, found.name) == ("gone", URL + "#part")

    with pytest.raises(InvalidArgument, match="enable it first"):
        await lab.queue.webhooks.replay(before)
    assert await lab.queue.webhooks.enable(URL)
    assert await lab.queue.webhooks.disabled_endpoints() == []
    wanted = Selection(states=(DeliveryState.DISABLED,))
    assert (await lab.queue.webhooks.replay_many(wanted, rate=10_000))["replayed"] == 2
    await lab.attempt(before, status=200)
    assert await lab.state(before) == "delivered"
    kinds = [e.kind for e in await lab.queue.webhooks.events()]
    assert kinds == ["endpoint_disabled", "endpoint_enabled"]


async def test_an_endpoint_that_failed_for_long_enough_is_disabled(lab: Lab) -> None:
    lab.limits = replace(LIMITS, breaker_failures=0, disable_after_s=0.001, concurrency=10)
    events = []
    for _ in range(6):
        id_ = await lab.send()
        found = await lab.claim(id_)
        if isinstance(found, ClaimedDelivery):
            events += (await lab.end(found, status=500))[1]
    assert events == ["endpoint_disabled"]
    (found,) = await lab.queue.webhooks.disabled_endpoints()
    assert (found.reason, found.failures) == ("failing", 5)


async def test_one_success_resets_the_failures_of_an_endpoint(lab: Lab) -> None:
    lab.limits = replace(LIMITS, breaker_failures=0, disable_after_s=0.001)
    for status in (500, 500, 500, 500, 200, 500):
        assert await lab.attempt(await lab.send(), status=status) == []
    assert await lab.queue.webhooks.disabled_endpoints() == []


async def test_an_endpoint_is_disabled_and_enabled_by_hand(lab: Lab) -> None:
    hooks = lab.queue.webhooks
    assert await hooks.disable(endpoint_id="t1")
    assert not await hooks.disable(endpoint_id="t1")
    assert isinstance(await lab.claim(await lab.send(endpoint_id="t1")), EndedUnsent)
    assert await hooks.enable(endpoint_id="t1")
    assert not await hooks.enable(endpoint_id="t1")
    await lab.go(await lab.send(endpoint_id="t1"))


async def test_a_replay_keeps_id_and_attempts_and_counts_from_one(lab: Lab) -> None:
    id_ = await lab.send()
    await lab.attempt(id_, status=410)
    await lab.queue.webhooks.enable(URL)
    await lab.queue.webhooks.replay(id_)
    assert await lab.stores.client.pttl(lab.stores.keys.webhook(id_)) == -1
    claimed = await lab.go(id_)
    assert (claimed.attempt, claimed.charged) == (2, 1)
    with pytest.raises(InvalidArgument, match="has not ended"):
        await lab.queue.webhooks.replay(id_)
    await lab.end(claimed, status=200)
    shown = await lab.queue.delivery(id_)
    assert ([a.status for a in shown.attempts], shown.replays) == ([410, 200], 1)
    with pytest.raises(NotFound):
        await lab.queue.webhooks.replay("msg_unknown")


async def test_replays_are_selected_by_fields_and_limited_by_rate(lab: Lab) -> None:
    lab.limits = replace(LIMITS, breaker_failures=0, concurrency=50)
    hooks = lab.queue.webhooks
    old = await lab.send()
    await lab.attempt(old, error="x", permanent=True)
    since = (await lab.queue.delivery(old)).ended_at
    assert since is not None
    since += timedelta(milliseconds=1)
    await lab.tick()
    dead = [await lab.send() for _ in range(3)]
    done = await lab.send()
    other = await lab.queue.send_webhook(URL + "/other", {}, event_type="y")
    for id_ in (*dead, other):
        await lab.attempt(id_, error="x", permanent=True)
    await lab.attempt(done, status=200)
    assert set(await hooks.find(Selection(since=since, event_type="x"))) == set(dead)
    assert await hooks.find(Selection(url=URL + "/other")) == [other]
    assert await hooks.find(Selection(until=since)) == [old]
    assert await hooks.find(Selection(states=(DeliveryState.DELIVERED,))) == [done]
    counts = await hooks.replay_many(Selection(since=since, event_type="x"), rate=0.01)
    assert counts["replayed"] == 3
    shown = [await lab.queue.delivery(id_) for id_ in dead]
    nexts = sorted(d.next_attempt_at for d in shown if d.next_attempt_at)
    gaps = [(b - a).total_seconds() for a, b in pairwise(nexts)]
    assert gaps == pytest.approx([100, 100], abs=30)
    assert await lab.stores.client.zcard(lab.stores.keys.queue("low")) == 3


async def test_a_selection_of_several_pages_is_replayed_completely(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(230)]
    verdict = Verdict(DeliveryState.DEAD, breaker=BreakerSign.NONE, endpoint=EndpointSign.NONE)
    for id_ in ids:
        claimed = await lab.go(id_)
        attempt = Attempt(datetime.now(UTC), None, "x", 1.0)
        await lab.stores.attempts.record(
            id_, claimed.attempt, attempt, verdict, lab.limits, draw=0.5, max_attempts=10
        )
    assert (await lab.queue.webhooks.replay_many())["replayed"] == 230


# -- the record ------------------------------------------------------------------


async def test_a_delivery_past_its_deadline_is_dead_without_an_attempt(lab: Lab) -> None:
    id_ = await lab.send(deadline=datetime.now(UTC) + timedelta(hours=1))
    await lab.stores.client.hset(lab.stores.keys.webhook(id_), "deadline", 1)
    assert await lab.claim(id_) == EndedUnsent(DeliveryState.DEAD, "deadline")
    shown = await lab.queue.delivery(id_)
    assert (shown.state, shown.error) == ("dead", "deadline")


async def test_a_parked_delivery_that_ends_is_no_longer_parked(lab: Lab) -> None:
    for _ in range(2):
        await lab.go(await lab.send())
    id_ = await lab.send(deadline=datetime.now(UTC) + timedelta(hours=1))
    await lab.held(id_)
    assert (await lab.queue.webhooks.endpoint(URL)).parked == 1
    await lab.stores.client.hset(lab.stores.keys.webhook(id_), "deadline", 1)
    assert await lab.claim(id_) == EndedUnsent(DeliveryState.DEAD, "deadline")
    assert (await lab.queue.webhooks.endpoint(URL)).parked == 0


async def test_no_wait_extends_past_the_deadline(lab: Lab) -> None:
    await lab.trip()
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert (await lab.held(await lab.send(deadline=soon))).wait_s <= 30
    other = await lab.send("https://other.example.com/", deadline=soon)
    verdict, _ = await lab.end(await lab.go(other), status=503, retry_after_s=60)
    assert (verdict.state, verdict.reason) == (DeliveryState.DEAD, "deadline")


async def test_an_attempt_that_was_overtaken_records_nothing(lab: Lab) -> None:
    id_ = await lab.send()
    old, new = await lab.go(id_), await lab.go(id_)
    await lab.end(old, status=500)
    assert await lab.state(id_) == "sending"
    await lab.end(new, status=200)
    await lab.end(old, status=500)
    shown = await lab.queue.delivery(id_)
    assert (shown.state, [a.status for a in shown.attempts]) == ("delivered", [None, 200])


async def test_a_run_after_a_crash_does_not_retry_early(lab: Lab) -> None:
    id_ = await lab.send()
    await lab.end(await lab.go(id_), wait=True, status=503, retry_after_s=90)
    lab.limits = replace(LIMITS, breaker_failures=0)
    await lab.stores.client.delete(lab.stores.keys.webhook_limits(endpoint_of(URL, None)))
    held = await lab.held(id_)
    assert held.reason == "early"
    assert 60 < held.wait_s < 100
    assert (await lab.queue.delivery(id_)).attempt_count == 1


async def test_a_retry_at_the_head_of_an_order_keeps_its_time(
    lab: Lab,
) -> None:
    first = await lab.send(ordering_key="k")
    later = datetime.now(UTC) + timedelta(hours=1)
    behind = await lab.send(ordering_key="k", deadline=later)
    await lab.end(await lab.go(first), wait=True, status=429, retry_after_s=90)
    job = await lab.stores.client.hget(lab.stores.keys.webhook(first), "job")
    due = (datetime.now(UTC) + timedelta(seconds=95)).timestamp() * 1000
    await lab.stores.client.zadd(lab.stores.keys.queue(), {job: due})
    await lab.stores.client.hset(lab.stores.keys.webhook(behind), "deadline", 1)
    assert await lab.claim(behind) == EndedUnsent(DeliveryState.DEAD, "deadline")
    assert await lab.due_in_s(first) > 70


async def test_a_begin_that_is_sent_again_counts_one_attempt(lab: Lab) -> None:
    id_ = await lab.send()
    store = lab.stores.attempts.calls

    class Twice:
        """As the pool does when a reply is lost: the same command, once more."""

        async def evalsha(self, *args: Any) -> Any:
            await store_client.evalsha(*args)
            return await store_client.evalsha(*args)

        eval = evalsha

    store_client, store.client = store.client, Twice()
    await lab.stores.client.script_load(ATTEMPT.source)
    claimed = await lab.go(id_)
    _, events = await lab.end(claimed, status=200)
    assert (claimed.attempt, events) == (1, [])
    shown = await lab.queue.delivery(id_)
    assert (shown.state, shown.attempt_count, len(shown.attempts)) == ("delivered", 1, 1)


async def test_an_outcome_is_recorded_after_a_server_outage(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(2)]
    claimed = [await lab.go(id_) for id_ in ids]
    failures, evalsha = 0, lab.stores.client.evalsha
    is_back, given_up = asyncio.Event(), asyncio.Event()

    class Away:
        async def evalsha(self, *args: Any) -> Any:
            nonlocal failures
            failures += 1
            if failures > 2:
                given_up.set()
            if not is_back.is_set():
                raise ConnectionError("away")
            return await evalsha(*args)

    lab.stores.attempts.calls.client = Away()
    recording = [
        asyncio.create_task(lab.end(attempt, wait=True, status=200)) for attempt in claimed
    ]
    async with asyncio.timeout(10):
        await given_up.wait()
    # After its timeout a job stops waiting, and its record is not sent.
    recording[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording[0]
    is_back.set()
    await recording[1]
    assert [await lab.state(id_) for id_ in ids] == ["sending", "delivered"]
    assert (await lab.queue.delivery(ids[1])).attempt_count == 1


async def test_an_unreadable_delivery_fails_no_other_attempt(lab: Lab) -> None:
    ids = [await lab.send() for _ in range(2)]
    broken = lab.stores.keys.webhook(ids[0])
    await lab.stores.client.delete(broken)
    await lab.stores.client.set(broken, "no hash")
    found = await asyncio.gather(*(lab.claim(id_) for id_ in ids), return_exceptions=True)
    assert isinstance(found[0], ScriptFailed)
    assert isinstance(found[1], ClaimedDelivery)


async def test_requests_of_one_tick_are_sent_in_one_call(lab: Lab) -> None:
    lab.limits = replace(LIMITS, concurrency=100)
    ids = [await lab.send() for _ in range(30)]
    calls, evalsha = [], lab.stores.client.evalsha

    class Counted:
        async def evalsha(self, *args: Any) -> Any:
            calls.append(args)
            return await evalsha(*args)

    await lab.stores.client.script_load(ATTEMPT.source)
    lab.stores.attempts.calls.client = Counted()
    claims = await asyncio.gather(*(lab.go(id_) for id_ in ids))
    await asyncio.gather(*(lab.end(claimed, wait=True, status=200) for claimed in claims))
    assert len(calls) == 2
    for id_ in ids:
        assert await lab.state(id_) == "delivered"


async def test_a_requested_delay_holds_when_the_order_reaches_it(lab: Lab) -> None:
    first = await lab.send(ordering_key="k")
    second = await lab.send(ordering_key="k", delay_s=300)
    await lab.attempt(first, status=200)
    assert await lab.due_in_s(second) > 250


async def test_every_end_is_reported_once_to_the_on_end_function(lab: Lab) -> None:
    id_ = await lab.send(on_end="note_callback")
    silent = await lab.send()
    await lab.attempt(id_, status=200)
    await lab.attempt(silent, status=200)
    keys = lab.stores.keys
    jobs = await lab.stores.client.zrange(keys.queue(), 0, -1)
    reports = [job.decode() for job in jobs if job.startswith(b"webhook-end:")]
    assert reports == [f"webhook-end:0:{id_}"]


async def test_a_replay_after_success_needs_the_secrets_again(client: Any, prefix: str) -> None:
    import base64

    own = "whsec_" + base64.b64encode(b"o" * 32).decode()
    options = options_of(webhook_encryption_key=base64.b64encode(b"k" * 32).decode())
    lab = Lab(queue_of(client, prefix, options))
    delivered = await lab.send(secret=own)
    dead = await lab.send(secret=own)
    await lab.attempt(delivered, status=200)
    await lab.attempt(dead, error="x", permanent=True)
    with pytest.raises(InvalidArgument, match="pass them again"):
        await lab.queue.webhooks.replay(delivered)
    await lab.queue.webhooks.replay(delivered, secrets=[own])
    await lab.queue.webhooks.replay(dead)
    for id_ in (delivered, dead):
        assert (await lab.go(id_)).secret is not None


async def test_every_key_of_a_finished_delivery_expires_or_is_gone(lab: Lab) -> None:
    lab.limits = replace(LIMITS, rate_per_s=1000.0)
    id_ = await lab.send(ordering_key="k")
    await lab.attempt(id_, status=200)
    lasting = set()
    async for key in lab.stores.client.scan_iter(match=lab.stores.keys.prefix + "*"):
        if await lab.stores.client.pttl(key) == -1:
            lasting.add(key.decode().removeprefix(lab.stores.keys.prefix))
    # The engine ends the job.
    assert lasting <= {f"job:webhook:{id_}", "queue", "queue:wake"}


async def test_a_full_server_still_sends_and_records_stored_deliveries(
    private_valkey_url: str,
) -> None:
    async with open_queue(quick_settings(private_valkey_url)) as queue:
        lab = Lab(queue)
        id_ = await lab.send()
        try:
            await stores_of(queue).client.config_set("maxmemory", 1)
            with pytest.raises(QueueMemoryFull):
                await lab.send()
            claimed = await lab.go(id_)
            await lab.end(claimed, status=200)
            assert await lab.state(id_) == "delivered"
        finally:
            await stores_of(queue).client.config_set("maxmemory", 0)


async def test_the_index_of_ended_deliveries_is_trimmed_by_retention(lab: Lab) -> None:
    index = lab.stores.keys.webhook_ended("delivered")
    await lab.stores.client.zadd(index, {"long_ago": 1})
    id_ = await lab.send()
    await lab.attempt(id_, status=200)
    assert await lab.stores.client.zrange(index, 0, -1) == [id_.encode()]
    assert await lab.stores.client.pttl(index) > 0


async def test_an_attempt_that_cannot_be_encoded_fails_alone(lab: Lab) -> None:
    ids = [await lab.send(f"https://h{n}.example.com/") for n in range(8)]
    claimed = list(await asyncio.gather(*(lab.go(id_) for id_ in ids)))

    def record(number: int) -> Any:
        error = "\ud800" if number % 4 == 0 else "refused"
        return lab.end(claimed[number], error=error)

    ends = await asyncio.gather(*(record(n) for n in range(8)), return_exceptions=True)
    assert [isinstance(end, NotEncodable) for end in ends] == [n % 4 == 0 for n in range(8)]
    for number, id_ in enumerate(ids):
        attempts = (await lab.queue.delivery(id_)).attempts
        assert [a.error for a in attempts] == ["interrupted" if number % 4 == 0 else "refused"]
