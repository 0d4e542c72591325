"""
Tests attempts against a model, with sends, begins, ends, crashes, removals and replays in any order.

The server is real. Each call contains the requests of several workers' jobs; the
model processes them one by one. Both must return the same answers and reach the
same states.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from cache.connection.pool import PoolOptions, close_client, open_pool
from tests.support.options import endpoint_limits, retry_schedule
from tests.support.queues import queue_of, stores_of
from worker.keys import QueueKeys
from worker.webhooks.attempts import Attempt, AttemptStore, ClaimedDelivery, EndedUnsent, Throttled
from worker.webhooks.policy import Outcome, decide

pytestmark = pytest.mark.property

ENDPOINTS = 2
MOST_AT_ONCE, MOST_ATTEMPTS = 2, 3
LIMITS = endpoint_limits(
    concurrency=MOST_AT_ONCE, breaker_failures=0, disable_after_s=0, slot_s=600
)
SCHEDULE = retry_schedule(max_attempts=MOST_ATTEMPTS, base_s=60.0)
OUTCOMES = (
    Outcome(status=200),
    Outcome(status=500),
    Outcome(status=404),
    Outcome(error="no_route", internal=True),
    Outcome(error="target_forbidden", permanent=True),
)
ENDED = {"delivered", "dead"}


@dataclass
class Expected:
    """One delivery of the model; `number` is its position in time."""

    id: str
    number: int
    endpoint: int
    ordered: bool
    state: str = "pending"
    attempts: int = 0
    free: int = 0


class Model(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = open_pool(self.url, PoolOptions(), name="model")
        self.client = self.run(self.stack.__aenter__())
        self.keys = QueueKeys(f"m{uuid.uuid4().hex[:10]}:")
        self.queue = queue_of(self.client, self.keys.prefix)
        self.stores = stores_of(self.queue)
        self.store: AttemptStore = self.stores.attempts
        self.all: list[Expected] = []
        # Attempts under way, including those of dead or overtaken runs.
        self.claims: list[ClaimedDelivery] = []

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(close_client(self.client))
        self.run(self.stack.__aexit__(None, None, None))
        self.runner.close()

    # -- what can happen -----------------------------------------------------------

    @rule(endpoint=st.integers(0, ENDPOINTS - 1), ordered=st.booleans())
    def send(self, endpoint: int, ordered: bool) -> None:
        number = len(self.all)
        id_ = f"d{number}"
        sent = self.queue.send_webhook(
            "https://example.com/",
            {},
            event_type="x",
            webhook_id=id_,
            endpoint_id=f"e{endpoint}",
            ordering_key="k" if ordered else None,
        )
        self.run(sent)
        self.all.append(Expected(id_, number, endpoint, ordered))

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        """The requests of one tick: ends of attempts, then begins, of any deliveries."""
        ends: list[tuple[ClaimedDelivery, Outcome]] = []
        if self.claims:
            pair = st.tuples(st.sampled_from(self.claims), st.sampled_from(OUTCOMES))
            ends = data.draw(st.lists(pair, max_size=4))
        begins = data.draw(st.lists(st.sampled_from(self.all), max_size=5))
        found = self.run(self._together(ends, begins))
        for claimed, outcome in ends:
            self._end(claimed, outcome)
        ended_now = {claimed.id for claimed, _ in ends}
        for delivery, answer in zip(begins, found, strict=True):
            self._begin(delivery, answer, ended_now)

    @precondition(lambda self: any(d.state in ENDED for d in self.all))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        delivery = data.draw(st.sampled_from([d for d in self.all if d.state in ENDED]))
        self.run(self.queue.webhooks.replay(delivery.id))
        delivery.state, delivery.ordered, delivery.free = "pending", False, delivery.attempts

    @precondition(lambda self: any(d.state not in ENDED for d in self.all))
    @rule(data=st.data())
    def take_the_job_away(self, data: st.DataObject) -> None:
        delivery = data.draw(st.sampled_from([d for d in self.all if d.state not in ENDED]))
        job = self.run(self.client.hget(self.keys.webhook(delivery.id), "job"))
        self.run(self.client.delete(self.keys.job(job.decode())))
        _, ended = self.run(self.store.end_jobless(seen_s=0, most=1000))
        assert ended == [delivery.id]
        delivery.state = "dead"

    async def _together(
        self, ends: list[tuple[ClaimedDelivery, Outcome]], begins: list[Expected]
    ) -> list[Any]:
        now = datetime.now(UTC)
        for delivery in begins:
            # Its retry is due.
            await self.client.hdel(self.keys.webhook(delivery.id), "after")
        asked: list[Any] = []
        for claimed, outcome in ends:
            verdict = self._verdict(claimed, outcome)
            attempt = Attempt(now, outcome.status, outcome.error, 1.0)
            recorded = self.store.record(
                claimed.id, claimed.attempt, attempt, verdict, LIMITS,
                draw=0.5, max_attempts=MOST_ATTEMPTS,
            )  # fmt: skip
            asked.append(recorded)
        asked += [
            self.store.begin(delivery.id, now, LIMITS, max_attempts=MOST_ATTEMPTS)
            for delivery in begins
        ]
        answers = await asyncio.gather(*asked)
        return answers[len(ends) :]

    def _verdict(self, claimed: ClaimedDelivery, outcome: Outcome) -> Any:
        return decide(outcome, attempt=claimed.charged, schedule=SCHEDULE, rng=lambda: 0.5)

    # -- what must come of it --------------------------------------------------------

    def _end(self, claimed: ClaimedDelivery, outcome: Outcome) -> None:
        delivery = self.all[int(claimed.id[1:])]
        if (delivery.state, delivery.attempts) != ("sending", claimed.attempt):
            return
        verdict = self._verdict(claimed, outcome)
        delivery.state = verdict.state.value
        delivery.free += not verdict.charged

    def _begin(self, delivery: Expected, answer: Any, ended_now: set[str]) -> None:
        if delivery.state in ENDED:
            assert answer is None
        elif delivery.attempts - delivery.free >= MOST_ATTEMPTS:
            assert isinstance(answer, EndedUnsent)
            delivery.state = "dead"
        elif isinstance(answer, Throttled) and answer.reason == "early":
            # An end in the same call has delayed its retry.
            assert delivery.id in ended_now
        elif self._is_behind(delivery):
            assert isinstance(answer, Throttled), answer
            assert answer.reason == "ordered"
        elif delivery.state != "sending" and self._sending(delivery.endpoint) >= MOST_AT_ONCE:
            assert isinstance(answer, Throttled), answer
            assert answer.reason == "busy"
        else:
            assert isinstance(answer, ClaimedDelivery), answer
            delivery.state = "sending"
            delivery.attempts += 1
            charged = delivery.attempts - delivery.free
            assert (answer.attempt, answer.charged) == (delivery.attempts, charged)
            self.claims.append(answer)

    def _is_behind(self, delivery: Expected) -> bool:
        before = self.all[: delivery.number]
        same = [d for d in before if d.ordered and d.endpoint == delivery.endpoint]
        return delivery.ordered and any(d.state not in ENDED for d in same)

    def _sending(self, endpoint: int) -> int:
        return sum(d.state == "sending" for d in self.all if d.endpoint == endpoint)

    @invariant()
    def the_server_says_the_same(self) -> None:
        for delivery in self.all:
            shown = self.run(self.queue.delivery(delivery.id))
            assert (shown.state, shown.attempt_count, shown.uncharged_count) == (
                delivery.state, delivery.attempts, delivery.free,
            )  # fmt: skip
            assert len(shown.attempts) == delivery.attempts
        still_open = self.run(self.client.zrange(self.keys.webhook_open, 0, -1))
        assert {id_.decode() for id_ in still_open} == {
            d.id for d in self.all if d.state not in ENDED
        }
        for endpoint in range(ENDPOINTS):
            found = self.run(self.queue.webhooks.endpoint(endpoint_id=f"e{endpoint}"))
            assert found.sending == self._sending(endpoint) <= MOST_AT_ONCE


def test_batched_attempts_equal_separate_ones(valkey_url: str) -> None:
    Model.url = valkey_url
    run_machine(
        Model,
        settings=settings(
            max_examples=int(os.environ.get("FUZZ_EXAMPLES", "10")),
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
