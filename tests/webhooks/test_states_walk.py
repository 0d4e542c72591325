"""Tests that deliveries make exactly the transitions of docs/states.md."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.options import endpoint_limits
from tests.support.queues import queue_of, stores_of
from worker import InvalidArgument, NotFound
from worker.app.composition import Stores
from worker.client import JobQueue
from worker.webhooks.attempts import Attempt, ClaimedDelivery, Throttled
from worker.webhooks.limits import EndpointLimits
from worker.webhooks.policy import DeliveryState, Verdict

pytestmark = pytest.mark.integration

URL = "https://hooks.example.com/a"
PAGE = Path(__file__).parents[2] / "docs" / "states.md"
LIMITS = endpoint_limits(concurrency=2, breaker_failures=0)
STATES = ("pending", "sending", "waiting", "delivered", "dead", "disabled")
# The diagram's symbol for a missing delivery.
NOTHING = "[*]"


def drawn() -> set[tuple[str, str]]:
    """The arrows of the diagram under "A webhook delivery"."""
    text = PAGE.read_text(encoding="utf-8").partition("## A webhook delivery\n")[2]
    diagram = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
    assert diagram is not None
    lines = [line.strip() for line in diagram[1].splitlines()]
    arrows = [re.fullmatch(r"(\S+) --> (\S+): .+", line) for line in lines]
    assert all(arrows), lines
    return {(found[1], found[2]) for found in arrows if found is not None}


@dataclass
class Walk:
    """One queue; each delivery is alone and has its own endpoint."""

    queue: JobQueue
    number: int = 0

    @property
    def stores(self) -> Stores:
        return stores_of(self.queue)

    async def into(self, state: str) -> str:
        """Make a delivery in this state."""
        self.number += 1
        endpoint = f"e{self.number}"
        id_ = await self.queue.send_webhook(
            URL, {}, event_type="x", endpoint_id=endpoint, webhook_id=f"m{self.number}"
        )
        if state == "disabled":
            await self.queue.webhooks.disable(endpoint_id=endpoint)
            await self.begin(id_)
            await self.queue.webhooks.enable(endpoint_id=endpoint)
        elif state != "pending":
            await self.begin(id_)
            if state != "sending":
                await self.record(id_, state)
                await self.stores.client.hdel(self.stores.keys.webhook(id_), "after")
        assert await self.state(id_) == state
        return id_

    async def state(self, id_: str) -> str:
        try:
            return (await self.queue.delivery(id_)).state.value
        except NotFound:
            return NOTHING

    def endpoint(self, id_: str) -> str:
        return "e" + id_[1:]

    async def begin(self, id_: str, limits: EndpointLimits = LIMITS, most: int = 10) -> bool:
        """Whether the begin returned anything except that the delivery has ended."""
        found = await self.stores.attempts.begin(id_, datetime.now(UTC), limits, max_attempts=most)
        return isinstance(found, ClaimedDelivery | Throttled)

    async def record(self, id_: str, state: str, behind: int = 0) -> bool:
        attempts = int(await self.stores.client.hget(self.stores.keys.webhook(id_), "attempts"))
        wait_s = 60.0 if state == "waiting" else 0.0
        await self.stores.attempts.record(
            id_,
            attempts - behind,
            Attempt(datetime.now(UTC), 200, "", 1.0),
            Verdict(DeliveryState(state), wait_s),
            LIMITS,
            draw=0.5,
            max_attempts=10,
        )
        return False

    async def field(self, id_: str, **values: Any) -> None:
        await self.stores.client.hset(self.stores.keys.webhook(id_), mapping=values)

    async def past_ms(self, **delta: float) -> int:
        seconds, _ = await self.stores.client.time()
        return int((seconds + timedelta(**delta).total_seconds()) * 1000)


Step = Callable[[Walk, str], Awaitable[bool]]


async def begun(walk: Walk, id_: str) -> bool:
    return await walk.begin(id_)


async def begun_on_a_full_endpoint(walk: Walk, id_: str) -> bool:
    slots = walk.stores.keys.webhook_slots("id:" + walk.endpoint(id_))
    later = await walk.past_ms(minutes=1)
    await walk.stores.client.delete(slots)
    await walk.stores.client.zadd(slots, {"other": later, "another": later})
    return await walk.begin(id_)


async def begun_on_a_closed_endpoint(walk: Walk, id_: str) -> bool:
    limits = walk.stores.keys.webhook_limits("id:" + walk.endpoint(id_))
    await walk.stores.client.hset(limits, "pause", await walk.past_ms(minutes=1))
    return await walk.begin(id_)


async def begun_on_a_slow_endpoint(walk: Walk, id_: str) -> bool:
    limits = walk.stores.keys.webhook_limits("id:" + walk.endpoint(id_))
    await walk.stores.client.hset(limits, "next_at", await walk.past_ms(minutes=1))
    return await walk.begin(id_, replace(LIMITS, rate_per_s=1.0))


async def begun_too_early(walk: Walk, id_: str) -> bool:
    await walk.field(id_, after=await walk.past_ms(minutes=1))
    return await walk.begin(id_)


async def begun_behind_another(walk: Walk, id_: str) -> bool:
    first = await walk.into("pending")
    line = walk.stores.keys.prefix + "webhook-order:o" + id_
    await walk.stores.client.zadd(line, {first: 1, id_: 2})
    await walk.field(id_, order="o" + id_)
    return await walk.begin(id_)


async def begun_after_the_deadline(walk: Walk, id_: str) -> bool:
    await walk.field(id_, deadline=await walk.past_ms(seconds=-1))
    return await walk.begin(id_)


async def begun_with_no_attempt_left(walk: Walk, id_: str) -> bool:
    return await walk.begin(id_, most=0)


async def begun_at_a_disabled_endpoint(walk: Walk, id_: str) -> bool:
    await walk.queue.webhooks.disable(endpoint_id=walk.endpoint(id_))
    return await walk.begin(id_)


async def recorded_as_delivered(walk: Walk, id_: str) -> bool:
    return await walk.record(id_, "delivered")


async def recorded_as_waiting(walk: Walk, id_: str) -> bool:
    return await walk.record(id_, "waiting")


async def recorded_as_dead(walk: Walk, id_: str) -> bool:
    return await walk.record(id_, "dead")


async def recorded_for_an_earlier_attempt(walk: Walk, id_: str) -> bool:
    return await walk.record(id_, "delivered", behind=1)


async def replayed(walk: Walk, id_: str) -> bool:
    try:
        await walk.queue.webhooks.replay(id_)
    except InvalidArgument:
        assert await walk.state(id_) in ("pending", "sending", "waiting")
    return False


async def sent_again_by_the_caller(walk: Walk, id_: str) -> bool:
    await walk.queue.send_webhook(URL, {}, event_type="x", webhook_id=id_)
    return False


async def looked_after(walk: Walk, _id: str) -> bool:
    await walk.stores.attempts.end_jobless(seen_s=0, most=1000)
    return False


async def robbed_of_its_job(walk: Walk, id_: str) -> bool:
    job = await walk.stores.client.hget(walk.stores.keys.webhook(id_), "job")
    await walk.stores.client.delete(walk.stores.keys.job(job.decode()))
    return await looked_after(walk, id_)


STEPS: tuple[Step, ...] = (
    begun,
    begun_on_a_full_endpoint,
    begun_on_a_closed_endpoint,
    begun_on_a_slow_endpoint,
    begun_too_early,
    begun_behind_another,
    begun_after_the_deadline,
    begun_with_no_attempt_left,
    begun_at_a_disabled_endpoint,
    recorded_as_delivered,
    recorded_as_waiting,
    recorded_as_dead,
    recorded_for_an_earlier_attempt,
    replayed,
    sent_again_by_the_caller,
    looked_after,
    robbed_of_its_job,
)


@pytest.fixture
async def walk(client: Any, prefix: str) -> Walk:
    return Walk(queue_of(client, prefix))


async def test_deliveries_make_exactly_the_documented_transitions(walk: Walk) -> None:
    walked: dict[tuple[str, str], list[str]] = {}
    for state in STATES:
        for step in STEPS:
            id_ = await walk.into(state)
            answered = await step(walk, id_)
            after = await walk.state(id_)
            # A wait or a repeated attempt is a transition, although the state's name stays.
            if after != state or answered:
                walked.setdefault((state, after), []).append(step.__name__)
    arrows = {arrow for arrow in drawn() if NOTHING not in arrow}
    assert set(walked) == arrows, walked


async def test_only_ended_deliveries_expire(walk: Walk) -> None:
    found = {(NOTHING, "pending")}
    for state in STATES:
        id_ = await walk.into(state)
        if await walk.stores.client.pttl(walk.stores.keys.webhook(id_)) != -1:
            # The same end as by the server, but sooner.
            await walk.stores.client.pexpire(walk.stores.keys.webhook(id_), 0)
            found.add((state, await walk.state(id_)))
    assert found == {arrow for arrow in drawn() if NOTHING in arrow}
