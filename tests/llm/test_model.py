"""
Tests LLM requests and batches against a model, with operations and crashes in any order.

The server is real; the state machine controls the provider. After every step each request is in
exactly one place or has exactly one answer, which never changes; limits hold; sums are right; the
provider accepted no batch twice, and no batch was canceled there while a caller waited.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from arq.worker import Retry
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from cache.connection.pool import PoolOptions, open_pool
from tests.support.options import call_limits, options_of
from tests.support.queues import queue_of, stores_of
from tests.support.scripted_provider import POISON, USAGE, ScriptedProvider
from worker.keys import QueueKeys
from worker.llm.answers import Answer
from worker.llm.context import LLMContext
from worker.llm.direct import run_llm_request
from worker.llm.grouping import Group, check_request
from worker.llm.jobs import flush_llm_batches, run_llm_batch
from worker.llm.options import BatchOptions, flush_rules
from worker.llm.rate_limits import RateLimiter
from worker.llm.states import OnAmbiguous

pytestmark = pytest.mark.property

CHAT = "/v1/chat/completions"
GROUP = Group("openai", CHAT, "m")
PLAIN = options_of()
# Smaller than the settings allow: a few short requests fill a batch.
OPTIONS = replace(
    PLAIN,
    llm=replace(PLAIN.llm, batch_max_requests=5, batch_max_bytes=400, batch_max_age_s=1),
)
TEXTS = ("a", "b", "c", "long " * 12, POISON)
POINTS = [
    "sealed",
    "uploading",
    "uploaded",
    "submitting",
    "posted",
    "submitted",
    "unconfirmed",
    "fetched",
    "answered",
    "splitting",
    "split",
    "ended",
]
# Errors that may end a request that nobody canceled.
ERRORS = {"invalid_prompt", "invalid_request", "batch_expired", "missing"}
VERDICTS = st.lists(
    st.sampled_from(["ok", "ok", "invalid", "expired", "missing"]), min_size=1, max_size=5
)


class Crash(Exception):
    """Simulates the death of the process."""


class Model(RuleBasedStateMachine):
    """`open`: id -> text of the request; `ended`: id -> the first answer that was read."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = open_pool(self.url, PoolOptions(), name="model")
        self.client = self.run(self.stack.__aenter__())
        self.keys = QueueKeys(f"m{uuid.uuid4().hex[:10]}:")
        self.queue = queue_of(self.client, self.keys.prefix, OPTIONS)
        self.stores = stores_of(self.queue)
        self.provider = ScriptedProvider()
        self.late_s = 0
        self.crash_at = ""
        self.open: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.callers: dict[str, list[str]] = defaultdict(list)  # callers that have not canceled
        self.shared: dict[str, str] = {}  # text -> the open request that equal ones join
        self.dated: set[str] = set()
        self.may_be_canceled: set[str] = set()
        self.ended: dict[str, Answer] = {}
        self.ends: Counter[str] = Counter()
        self.seen: list[str] = []  # batches
        self.given_up: set[str] = set()  # batches, by an operator

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    @initialize(tries=st.integers(1, 3), texts=st.lists(st.sampled_from(TEXTS), min_size=4))
    def begin(self, tries: int, texts: list[str]) -> None:
        stores, unused = self.stores, cast("Any", None)
        context = LLMContext(
            keys=self.keys,
            requests=stores.requests,
            batches=stores.batches,
            orphans=stores.orphans,
            prepared=stores.prepared,
            batch_client=self.queue.llm.batches,
            jobs=self.queue.jobs,
            dead=self.queue.dead,
            webhooks=self.queue.webhooks,
            http=unused,
            providers={"openai": self.provider},
            limiters={
                "openai": RateLimiter(self.client, self.keys, "openai", call_limits(), lease_s=9)
            },
            options=BatchOptions(
                rules={"openai": flush_rules(OPTIONS.llm, "openai")},
                poll_interval_s=1,
                item_max_tries=tries,
                deadline_margin_s=60,
                on_ambiguous=OnAmbiguous.ADOPT,
                unconfirmed_wait_s=0,
                webhook_url=None,
                delete_files="input",
            ),
            now=lambda: datetime.now(UTC) + timedelta(seconds=self.late_s),
            reached=self.reached,
        )
        self.ctx: dict[Any, Any] = {"job_try": 1}
        context.put_into(self.ctx)
        self.submit(texts, dedupe=False, dated=False)

    def reached(self, point: str) -> None:
        if self.crash_at and point == f"batch.{self.crash_at}":
            self.crash_at = ""
            raise Crash

    # -- what callers do --------------------------------------------------------------

    @rule(
        texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8),
        dedupe=st.booleans(),
        dated=st.booleans(),
    )
    def submit(self, texts: list[str], dedupe: bool, dated: bool) -> None:
        deadline = datetime.now(UTC) + timedelta(hours=1) if dated else None
        bodies = [body(text) for text in texts]
        ids = self.run(
            self.queue.submit_many(
                bodies, provider="openai", endpoint=CHAT, dedupe=dedupe, deadline=deadline
            )
        )
        for text, caller in zip(texts, ids, strict=True):
            id_ = caller.partition(".")[0]
            if dedupe and text in self.shared:
                assert id_ == self.shared[text], "an equal request was not shared"
                assert caller not in self.callers[id_], "two callers have one id"
            else:
                assert id_ not in self.open
                assert id_ not in self.ended
                self.open[id_] = text
            if dedupe:
                self.shared[text] = id_
            self.callers[id_].append(caller)
            if dated:
                self.dated.add(id_)

    @rule(text=st.sampled_from(TEXTS))
    def submit_urgent(self, text: str) -> None:
        id_ = self.run(
            self.queue.submit_llm_request(body(text), provider="openai", endpoint=CHAT, urgent=True)
        )
        self.open[id_] = text
        self.callers[id_] = [id_]

    @rule(what=st.sampled_from(["request"] * 3 + ["batch", "group"]), number=st.integers(0, 50))
    def cancel(self, what: str, number: int) -> None:
        if what == "request":
            self.cancel_request(number)
        elif what == "batch":
            self.cancel_batch(number)
        else:
            self.cancel_group()

    def cancel_request(self, number: int) -> None:
        id_ = pick(list(self.open), number)
        if id_ is None:
            return
        caller = self.callers[id_].pop(number % len(self.callers[id_]))
        assert self.run(self.queue.llm.cancel(caller))
        if self.callers[id_]:
            # This caller has canceled before: a second time must change nothing.
            assert self.run(self.queue.llm.cancel(caller))
            assert self.run(self.stores.requests.is_open(id_))
        else:
            self.may_be_canceled.add(id_)
            assert not self.run(self.stores.requests.is_open(id_)), "its last caller has left"

    def cancel_batch(self, number: int) -> None:
        batch_id = pick(self.under_way(), number)
        if batch_id is not None:
            self.give_up(batch_id)
            assert self.run(self.queue.llm.batches.cancel(batch_id))

    def cancel_group(self) -> None:
        for batch_id in self.under_way():
            self.give_up(batch_id)
        pending = self.run(self.client.lrange(self.keys.llm_pending(GROUP.id), 0, -1))
        self.may_be_canceled |= {id_.decode() for id_ in pending}
        self.run(self.queue.llm.batches.cancel_group("openai", CHAT, "m"))
        assert self.run(self.stores.batches.waiting(GROUP))["requests"] == 0

    def give_up(self, batch_id: str) -> None:
        self.given_up.add(batch_id)
        members = self.run(self.client.smembers(self.keys.llm_open(batch_id)))
        self.may_be_canceled |= {id_.decode() for id_ in members}

    @rule(number=st.integers(0, 50))
    def retry(self, number: int) -> None:
        ended = [row["id"] for row in self.shown() if row["state"] in {"done", "failed"}]
        batch_id = pick(ended, number)
        if batch_id is None:
            return
        retried = self.run(self.queue.llm.batches.retry(batch_id))
        again = [id_ for id_ in self.ended if self.run(self.stores.requests.is_open(id_))]
        assert len(again) == retried
        for id_ in again:
            assert not self.ended[id_].ok, "an answered request was let go again"
            del self.ended[id_]
            self.callers[id_] = self.callers[id_] or [id_]
            self.open[id_] = self.texts[id_]
            self.may_be_canceled.discard(id_)
            self.dated.discard(id_)

    # -- what workers do --------------------------------------------------------------

    @rule(workers=st.integers(1, 4))
    def seal(self, workers: int) -> None:
        flushes = [flush_llm_batches(self.ctx) for _ in range(workers)]
        self.run(gather(flushes))
        assert self.run(self.stores.batches.waiting(GROUP))["requests"] == 0

    @rule(number=st.integers(0, 50), at_once=st.integers(1, 2), point=st.sampled_from(POINTS))
    def run_batch(self, number: int, at_once: int, point: str) -> None:
        """Run one batch, perhaps by two workers, perhaps into a crash."""
        batch_id = pick(self.under_way(), number)
        if batch_id is not None:
            self.crash_at = point
            self.run(gather([go(run_llm_batch(self.ctx, batch_id)) for _ in range(at_once)]))
            self.crash_at = ""

    @rule()
    def run_batches(self) -> None:
        for batch_id in self.under_way():
            self.run(go(run_llm_batch(self.ctx, batch_id)))

    @rule()
    def run_singles(self) -> None:
        for id_ in self.run(self.client.zrange(self.keys.llm_single, 0, -1)):
            self.run(go(run_llm_request(self.ctx, id_.decode())))

    # -- what the provider and the clock do ---------------------------------------------

    @rule(fault=st.sampled_from(["drop", "lose"]))
    def lose_the_next_answer(self, fault: str) -> None:
        self.provider.fault = fault

    @rule(rounds=st.integers(1, 3), verdicts=VERDICTS)
    def work(self, rounds: int, verdicts: list[str]) -> None:
        """Let everything succeed for a while."""
        self.seal(2)
        for _ in range(rounds):
            self.run_batches()
            self.provider_ends("unnamed", verdicts)

    @rule(
        outcome=st.sampled_from(["named", "unnamed"]),
        verdicts=VERDICTS,
    )
    def provider_ends(self, outcome: str, verdicts: list[str]) -> None:
        for id_, remote in self.provider.remotes.items():
            if remote.status == "in_progress":
                self.provider.end(id_, outcome, verdicts)

    @rule(seconds=st.sampled_from([30, 1800]))
    def time_passes(self, seconds: int) -> None:
        self.late_s += seconds

    # -- what always holds -------------------------------------------------------------

    @invariant()
    def every_request_is_in_one_place_or_has_one_answer(self) -> None:
        pending = self.run(self.client.lrange(self.keys.llm_pending(GROUP.id), 0, -1))
        places = Counter(id_.decode() for id_ in pending)
        places.update(
            id_.decode() for id_ in self.run(self.client.zrange(self.keys.llm_single, 0, -1))
        )
        for row in self.shown():
            members = self.run(self.client.smembers(self.keys.llm_open(row["id"])))
            assert not members or row["state"] not in {"done", "failed"}
            places.update(id_.decode() for id_ in members)
        self.texts |= self.open
        for id_ in list(self.open):
            answer = self.run(self.stores.requests.peek_answer(id_))
            assert places[id_] == (0 if answer else 1), (id_, places[id_], answer)
            if answer is not None:
                self._end(id_, answer)
        assert sum(places.values()) == len(self.open)
        for id_, seen in self.ended.items():
            assert self.run(self.stores.requests.peek_answer(id_)) == seen, "an answer has changed"

    def _end(self, id_: str, answer: Answer) -> None:
        text = self.open.pop(id_)
        self.ended[id_] = answer
        self.ends["succeeded" if answer.ok else "failed"] += 1
        if self.shared.get(text) == id_:
            del self.shared[text]
        if answer.ok:
            assert answer.body["echo"] == text, "another's answer"
            assert text != POISON
        elif answer.kind == "canceled":
            assert id_ in self.may_be_canceled
        elif answer.kind == "deadline_exceeded":
            assert id_ in self.dated
        else:
            assert answer.kind in ERRORS
            assert answer.kind != "invalid_request" or text == POISON, "a correct line was rejected"

    @invariant()
    def limits_and_sums_are_right(self) -> None:
        waiting = self.run(self.stores.batches.waiting(GROUP))
        pending = self.run(self.client.lrange(self.keys.llm_pending(GROUP.id), 0, -1))
        sizes = [SIZES[self.texts[id_.decode()]] for id_ in pending]
        assert waiting == {
            "requests": len(sizes),
            "bytes": sum(size for size, _ in sizes),
            "tokens": sum(tokens for _, tokens in sizes),
        }
        for row in self.shown():
            assert row["requests"] <= OPTIONS.llm.batch_max_requests
            assert row["bytes"] <= OPTIONS.llm.batch_max_bytes
            counted = row["succeeded"] + row["failed"] + row["moved"] + row["outstanding"]
            assert row["requests"] == counted, row
        usage = self.run(self.stores.batches.usage(GROUP))
        done = self.ends["succeeded"]
        details = USAGE["prompt_tokens_details"], USAGE["completion_tokens_details"]
        expected = {
            "succeeded": done,
            "failed": self.ends["failed"],
            "input": done * 7,
            "output": done * 5,
            "cached": done * details[0]["cached_tokens"],  # type: ignore[index]
            "reasoning": done * details[1]["reasoning_tokens"],  # type: ignore[index]
        }
        assert usage == {name: number for name, number in expected.items() if number}

    @invariant()
    def the_provider_took_each_batch_once_and_ended_only_unwanted_ones(self) -> None:
        assert max(self.provider.taken.values(), default=0) <= 1
        for batch_id in self.provider.canceled:
            members = self.run(self.client.smembers(self.keys.llm_open(batch_id)))
            assert batch_id in self.given_up or not members

    # -- inside ------------------------------------------------------------------------

    def under_way(self) -> list[str]:
        found = {
            id_.decode() for id_ in self.run(self.client.zrange(self.keys.llm_underway, 0, -1))
        }
        # In the order of their first appearance, so that a failure can be replayed.
        self.seen += sorted(found.difference(self.seen))
        return [id_ for id_ in self.seen if id_ in found]

    def shown(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.run(self.queue.llm.batches.list(limit=10_000))
        return found

    def teardown(self) -> None:
        if self.open or self.under_way():
            self.work_off()
        leftovers = self.run(self._without_ttl())
        assert leftovers == set(), leftovers
        self.run(self.queue.aclose())
        self.run(self.stack.__aexit__(None, None, None))
        self.runner.close()

    def work_off(self) -> None:
        """From any state, everything ends once the provider works."""
        for _ in range(60):
            self.seal(1)
            self.run_batches()
            self.provider_ends("unnamed", ["ok"])
            self.run_singles()
            self.every_request_is_in_one_place_or_has_one_answer()
            if not self.open and not self.under_way():
                return
        raise AssertionError(f"still open: {self.open}")

    async def _without_ttl(self) -> set[bytes]:
        keys = [key async for key in self.client.scan_iter(self.keys.llm + "*")]
        return {key for key in keys if await self.client.pttl(key) == -1}


def body(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def _size(text: str) -> tuple[int, int]:
    checked = check_request(body(text), provider="openai", endpoint=CHAT, max_bytes=10_000)
    return len(checked.body), checked.tokens


SIZES = {text: _size(text) for text in TEXTS}


def pick(ids: list[str], number: int) -> str | None:
    return ids[number % len(ids)] if ids else None


async def go(work: Any) -> None:
    """Run a job; a crash or a retry ends the run, as in the engine."""
    try:
        await work
    except (Crash, Retry):
        return


async def gather(works: list[Any]) -> None:
    await asyncio.gather(*works)


@pytest.mark.timeout(600)
def test_requests_and_batches_agree_with_the_model(valkey_url: str) -> None:
    Model.url = valkey_url
    run_machine(
        Model,
        settings=settings(
            max_examples=int(os.environ.get("FUZZ_EXAMPLES", "12")),
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
