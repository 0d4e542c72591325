"""No script leaves a half state: with any key or number spoiled it writes everything or nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

import cache
import worker
from cache.connection import embedded
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.scripts import load
from cache.encoding import codec
from cache.keys import staged_of
from tests.support.failing_writes import FAIL_AT, HAS_FAILED, contents, failing
from tests.support.half_states import RefusedStep, prove, restore, snapshot
from tests.support.options import call_limits, endpoint_limits
from worker import Priority, QueueMemoryFull, QueueUnavailable
from worker.engine import poll, records
from worker.engine.gatherings import GATHERING, Gatherings
from worker.engine.options import EngineOptions
from worker.engine.poll import Poll, PollStopped
from worker.keys import EngineKeys, QueueKeys
from worker.llm import answer_store
from worker.llm import requests as llm_requests
from worker.llm.answers import Answer
from worker.llm.batches import BatchStore
from worker.llm.grouping import Group, LLMRequest
from worker.llm.options import FlushRules, Retention
from worker.llm.orphans import Orphans
from worker.llm.rate_limits import RateLimiter
from worker.llm.requests import Callback, RequestStore
from worker.llm.states import BatchState
from worker.queue import dead, staging, store
from worker.queue.dead import DeadLetters
from worker.queue.encoder import PreparedJob
from worker.queue.pauses import Pauses
from worker.queue.schedules import Schedule, ScheduleStore
from worker.queue.store import QueueStore, job_body
from worker.queue.switches import Switches
from worker.webhooks import deliveries
from worker.webhooks.attempts import AttemptStore, ScriptFailed
from worker.webhooks.deliveries import DeliveryStore
from worker.webhooks.endpoints import EndpointStore
from worker.webhooks.policy import BreakerSign, DeliveryState, EndpointSign, Verdict
from worker.webhooks.records import Attempt, UnreadableDelivery
from worker.webhooks.secrets import DeliverySecrets

pytestmark = pytest.mark.integration

# One hash tag, so that the same steps run on a cluster (test_security_slots.py).
KEYS = QueueKeys("{arq}:")
BODY = job_body("f", [1], {}, now_ms=1)
GROUP = Group("openai", "/v1/chat/completions", "m")
RULES = FlushRules(max_requests=3, max_bytes=10**9, max_tokens=10**9, max_age_ms=1000)
NOW, TOLD = PreparedJob("now", BODY), Callback("who", BODY)
ANSWER = Answer(body={"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
FAILED = Answer(kind="bad", message="no")
LIMITS = endpoint_limits(concurrency=2, breaker_failures=1, disable_after_s=1)
MOMENT = datetime(2024, 1, 1, tzinfo=UTC)
Steps = tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]
CASES: dict[str, Callable[[Any], Steps]] = {}


def case(build: Callable[[Any], Steps]) -> Callable[[Any], Steps]:
    CASES[build.__name__] = build
    return build


@pytest.fixture(scope="module")
def own_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for these tests, which empty it and refuse its writes."""
    url = f"embedded://{tmp_path_factory.mktemp('half')}/valkey"
    yield embedded.acquire(url)
    embedded.release(url)


@pytest.fixture
async def server(own_url: str) -> AsyncIterator[Any]:
    async with open_pool(own_url, PoolOptions(), name="half") as client:
        # Each trial writes everything anew, and none restarts the server.
        await client.config_set("appendonly", "no")
        yield client


async def nothing() -> None:
    return None


# -- the queue --------------------------------------------------------------------


def put(client: Any, id_: str = "a", **more: Any) -> Callable[[], Awaitable[Any]]:
    values = {"priority": Priority.DEFAULT, "delay_ms": 0, "due_ms": None, "most": 0, **more}
    return lambda: QueueStore(client, KEYS).put(id_, BODY, **values)


@case
def enqueue(client: Any) -> Steps:
    return nothing, put(client, most=10)


@case
def enqueue_without_a_limit(client: Any) -> Steps:
    return nothing, put(client)


@case
def enqueue_unique(client: Any) -> Steps:
    return nothing, put(client, unique=KEYS.unique("u"))


@case
def enqueue_where_the_key_is_held(client: Any) -> Steps:
    return put(client, "b", unique=KEYS.unique("u")), put(client, unique=KEYS.unique("u"))


@case
def enqueue_in_a_window(client: Any) -> Steps:
    return nothing, put(client, unique=KEYS.unique("u"), window_ms=1000)


@case
def enqueue_many(client: Any) -> Steps:
    rows = [(f"m{n}", priority, 0, BODY) for n, priority in enumerate(Priority)]
    gather = {"size": 1, "head": "a", "tail": "b", "queue": "q", "job": "j"}
    return nothing, lambda: QueueStore(client, KEYS).put_many(rows, most=9, gather=gather)


@case
def stage_part(client: Any) -> Steps:
    script, part = load("worker.queue", "stage_part"), [3, b"piece", 60_000]
    return nothing, lambda: script.run(client, [KEYS.result("part")], part)


@case
def abort(client: Any) -> Steps:
    return put(client), lambda: QueueStore(client, KEYS).abort("a")


@case
def run_now(client: Any) -> Steps:
    later = put(client, delay_ms=3_600_000)
    return later, lambda: QueueStore(client, KEYS).run_now(["a"])


@case
def stats(client: Any) -> Steps:
    async def prepare() -> None:
        await claimed(client)()
        await dead_letter(client)

    return prepare, lambda: QueueStore(client, KEYS).counts()


async def dead_letter(client: Any) -> None:
    fields = {"body": BODY, "queue": 3, "queue_name": "", "reason": "failed"}
    fields |= {"error": "", "tries": 1, "died": 1, "name": "f"}
    await client.hset(KEYS.dead_job("d"), mapping=fields)
    await client.zadd(KEYS.dead, {"d": 1})
    await client.zadd(KEYS.dead_queues, {"d": 3})
    await client.set(KEYS.retry("d"), 3)


@case
def dead_retry(client: Any) -> Steps:
    async def step() -> None:
        names = [KEYS.dead, KEYS.dead_job("d"), KEYS.job("d"), KEYS.result("d")]
        names += [KEYS.wake, KEYS.retry("d"), KEYS.dead_body("d"), *EngineKeys(KEYS).queues]
        names.append(KEYS.dead_queues)
        await load("worker.queue", "dead_retry").run(client, names, ["d", b""])

    return lambda: dead_letter(client), step


@case
def dead_retry_of_what_is_listed(client: Any) -> Steps:
    async def step() -> None:
        try:
            await DeadLetters(client, KEYS).retry("d")
        except (QueueUnavailable, QueueMemoryFull) as exc:
            raise RefusedStep(str(exc)) from None

    return lambda: dead_letter(client), step


@case
def pause(client: Any) -> Steps:
    keys = [EngineKeys(KEYS).paused, KEYS.wake]
    script = load("worker.queue", "pause")
    return nothing, lambda: script.run(client, keys, ["function", "f", 1, 9])


def held(client: Any) -> Callable[[], Awaitable[Any]]:
    """One job of the paused function `f` is held, and one is due."""

    async def prepare() -> None:
        await Pauses(client, KEYS).pause(function="f")
        await put(client)()
        await poller(client, "other").run([], 1)
        await put(client, "b")()

    return prepare


@case
def hold(client: Any) -> Steps:
    return held(client), lambda: polled(poller(client), [])


@case
def resume(client: Any) -> Steps:
    async def prepare() -> None:
        await held(client)()
        await Pauses(client, KEYS)._change("function", "f", pause=False)

    keys = [EngineKeys(KEYS).paused, KEYS.wake, *EngineKeys(KEYS).queues]
    return prepare, lambda: load("worker.queue", "resume").run(client, keys, ["f"])


@case
def schedule(client: Any) -> Steps:
    wanted = Schedule("s", worker.Call("f"), 1.0, None)
    return nothing, lambda: ScheduleStore(client, KEYS).put(wanted)


@case
def switch(client: Any) -> Steps:
    async def prepare() -> None:
        await ScheduleStore(client, KEYS).put(Schedule("s", worker.Call("f"), 1.0, None))
        await client.hset(EngineKeys(KEYS).cron, "s", 1)
        await Switches(client, KEYS).off("s")

    engine = EngineKeys(KEYS)
    keys = [engine.schedules, engine.schedule_jobs, engine.cron, engine.cron_off, engine.wake]
    return prepare, lambda: load("worker.queue", "switch").run(client, keys, ["s", 1, 1000])


# -- the engine -------------------------------------------------------------------


def poller(client: Any, name: str = "w") -> Poll:
    made = Poll(client, EngineKeys(KEYS), EngineOptions(lease_s=1), worker_id=name)
    made.may_give_up = lambda: True
    return made


def claimed(client: Any, *ids: str) -> Callable[[], Awaitable[Any]]:
    async def prepare() -> None:
        for id_ in ids or ("a",):
            await put(client, id_)()
        polled = await poller(client).run([], 9)
        assert len(polled.claims) == len(ids or ("a",))

    return prepare


def ending(
    client: Any, kind: str, details: dict[str, Any], before: Callable[[], Awaitable[Any]] = nothing
) -> Steps:
    """A poll that ends the job `a`, whose claim is read back, and claims another."""

    async def prepare() -> None:
        await claimed(client)()
        await put(client, "b")()
        await before()

    async def step() -> None:
        token = await client.getrange(KEYS.in_progress("a"), 0, -1)
        end = [kind, codec.lua_text(b"a"), codec.lua_text(token), 3, details, 1]
        await polled(poller(client), [end], [[3, "f", 1, 0, 1, 0, 0, 5, 5]])

    return prepare, step


async def polled(made: Poll, ends: list[Any], groups: Sequence[Any] = ()) -> None:
    try:
        await made.run(ends, 9, groups=groups)
    except PollStopped:
        raise RefusedStep("the poll was refused") from None


@case
def poll_claims(client: Any) -> Steps:
    async def prepare() -> None:
        await put(client)()
        await put(client, "b", priority=Priority.LOW)()
        await client.zadd(KEYS.abort, {"a": 1})

    return prepare, lambda: polled(poller(client), [])


@case
def poll_rescues(client: Any) -> Steps:
    async def prepare() -> None:
        await claimed(client, "a", "b")()
        await client.zadd(f"{KEYS.queue()}:running", {"a": 1, "b": 1})

    return prepare, lambda: polled(poller(client, "other"), [])


@case
def poll_buries_the_stalled(client: Any) -> Steps:
    async def prepare() -> None:
        await claimed(client)()
        await client.set(KEYS.in_progress("a"), "w|3|1|90")
        await client.zadd(f"{KEYS.queue()}:running", {"a": 1})

    return prepare, lambda: polled(poller(client, "other"), [])


@case
def poll_ends_done(client: Any) -> Steps:
    async def before() -> None:
        await client.set(KEYS.unique("u"), "a")
        fields = {"size": 1, "head": "a", "tail": "b", "queue": "high", "job": "j"}
        await client.hset(KEYS.gather("g"), mapping=fields)

    next_job = {"id": "n", "queue": "low", "delay": 5, "body": codec.lua_text(BODY)}
    details = {
        "result": codec.lua_text(b"r"),
        "ttl": 1000,
        "unique": KEYS.unique("u"),
        "gather": {"id": "g", "index": 0, "value": codec.lua_text(b"\x01")},
        "jobs": [next_job],
    }
    return ending(client, "done", details, before)


@case
def poll_ends_in_a_new_minute(client: Any) -> Steps:
    async def before() -> None:
        await client.zadd(KEYS.history.index, {"default:f": 61})
        await client.setrange(KEYS.history.minutes(1, "default:f"), 208, b"\1" * 208)

    return ending(client, "done", {}, before)


@case
def poll_ends_retry(client: Any) -> Steps:
    return ending(client, "retry", {"delay": 10, "tries": 2})


@case
def poll_ends_back(client: Any) -> Steps:
    return ending(client, "back", {"due": "5"})


@case
def poll_ends_started(client: Any) -> Steps:
    return ending(
        client,
        "started",
        {"unique": KEYS.unique("u")},
        lambda: client.set(KEYS.unique("u"), "a"),
    )


@case
def poll_ends_park(client: Any) -> Steps:
    return ending(client, "park", {"most": 10**9, "reason": "unknown", "error": "", "tries": 0})


@case
def poll_ends_dead(client: Any) -> Steps:
    details = {"reason": "failed", "error": "e", "tries": 1, "name": "f", "ttl": 1000}
    details |= {"result": codec.lua_text(b"r"), "unique": KEYS.unique("u")}

    async def before() -> None:
        await client.set(KEYS.unique("u"), "a")
        await dead_letter(client)

    return ending(client, "dead", details, before)


@case
def poll_ends_dead_with_a_large_body(client: Any) -> Steps:
    details = {"reason": "failed", "error": "e", "tries": 1, "name": "f"}
    return ending(client, "dead", details, lambda: client.append(KEYS.job("a"), bytes(300_000)))


@case
def gather_job(client: Any) -> Steps:
    member = GATHERING + b"g"

    async def prepare() -> None:
        fields = {"size": 2, "head": "a", "tail": "b", "queue": "high", "job": "j"}
        await client.hset(KEYS.gather("g"), mapping={**fields, "0": "x", "1": ""})
        await client.set(KEYS.gather_part("g", 1), "y")
        await client.zadd(EngineKeys(KEYS).schedules, {member: 0})

    joined = Gatherings(client, KEYS, EngineKeys(KEYS).schedules)
    return prepare, lambda: joined.enqueue(member)


@case
def next_job(client: Any) -> Steps:
    async def step() -> None:
        poll = poller(client).wake_poll()
        await client.script_load(load("worker.engine", "next_job", "..queue").source)
        await client.execute_command(*poll.command)

    return put(client), step


@case
def renew(client: Any) -> Steps:
    async def step() -> None:
        token = await client.getrange(KEYS.in_progress("a"), 0, -1)
        keys = [*EngineKeys(KEYS).queues, EngineKeys(KEYS).running]
        args = [KEYS.prefix, 1000, "a", token]
        await load("worker.engine", "renew", "..queue").run(client, keys, args)

    return claimed(client), step


@case
def cron(client: Any) -> Steps:
    keys = [EngineKeys(KEYS).cron, KEYS.queue(), KEYS.job("c"), KEYS.result("c"), KEYS.wake]
    keys += [EngineKeys(KEYS).paused, EngineKeys(KEYS).cron_off]
    keys += [EngineKeys(KEYS).cron_runs, EngineKeys(KEYS).cron_next]
    args = ["f", 5, "c", BODY, 1, "", 5, 5, "f", "f", 9]
    return (
        lambda: client.hset(EngineKeys(KEYS).cron, "f", 1),
        lambda: load("worker.engine", "cron", "..queue").run(client, keys, args),
    )


@case
def schedule_run(client: Any) -> Steps:
    names = [EngineKeys(KEYS).schedules, KEYS.queue(), KEYS.job("c"), KEYS.result("c"), KEYS.wake]
    names += [EngineKeys(KEYS).schedule_runs, EngineKeys(KEYS).paused]
    args = ["s", 5, 9, "c", BODY, "f", "default"]
    return (
        lambda: client.zadd(EngineKeys(KEYS).schedules, {"s": 5}),
        lambda: load("worker.engine", "schedule_run", "..queue").run(client, names, args),
    )


@case
def housekeeping(client: Any) -> Steps:
    keys = [KEYS.workers, KEYS.abort, EngineKeys(KEYS).listener]
    script = load("worker.engine", "housekeeping", "..queue")
    return (
        lambda: client.zadd(KEYS.abort, {"x": 1}),
        lambda: script.run(client, keys, [KEYS.prefix, "w", 1000]),
    )


@case
def beat(client: Any) -> Steps:
    async def prepare() -> None:
        await client.set(KEYS.worker("w"), "{}")

    script = load("worker.engine", "beat")
    return prepare, lambda: script.run(client, [KEYS.worker("w")], ["{}", 1000])


@case
def leave(client: Any) -> Steps:
    async def prepare() -> None:
        await client.zadd(KEYS.workers, {"w": 1})
        await client.set(EngineKeys(KEYS).listener, "w")
        await client.set(KEYS.health, "x")

    keys = [KEYS.worker("w"), KEYS.workers, EngineKeys(KEYS).listener, KEYS.health]
    keys += [KEYS.last_poll("w")]
    script = load("worker.engine", "leave", "..queue")
    return prepare, lambda: script.run(client, keys, ["w"])


# -- webhooks ---------------------------------------------------------------------


def create(client: Any, id_: str = "d", **more: Any) -> Callable[[], Awaitable[Any]]:
    fields: dict[str, Any] = {
        "url": "http://h.test/",
        "event_type": "x",
        "body": "{}",
    }
    fields |= {"deadline": 4 * 10**12, "on_end": "told", "priority": "default"}
    job_id = f"webhook:{id_}"
    values: dict[str, Any] = {
        "endpoint": "e",
        "host": "h",
        "order": "",
        "job_keys": KEYS.job_keys(job_id, Priority.DEFAULT),
        "job_id": job_id,
        "job_body": BODY,
        "delay_ms": 0,
        **more,
    }
    return lambda: DeliveryStore(client, KEYS, DeliverySecrets(None)).create(id_, fields, **values)


def begin(client: Any, id_: str = "d", **limits: Any) -> Callable[[], Awaitable[Any]]:
    chosen = endpoint_limits(**{"concurrency": 2, "breaker_failures": 1, **limits})

    async def step() -> Any:
        store = AttemptStore(client, KEYS, retention_s=1000)
        try:
            return await store.begin(id_, MOMENT, chosen, max_attempts=10)
        except UnreadableDelivery:
            return None  # begun; its job ends it
        except ScriptFailed as exc:
            raise RefusedStep(str(exc)) from None

    return step


def record(client: Any, verdict: Verdict, id_: str = "d") -> Callable[[], Awaitable[Any]]:
    async def step() -> Any:
        store = AttemptStore(client, KEYS, retention_s=1000)
        attempt = Attempt(MOMENT, 500, "", 1.0, b"")
        try:
            return await store.record(id_, 1, attempt, verdict, LIMITS, draw=0.5, max_attempts=10)
        except ScriptFailed as exc:
            raise RefusedStep(str(exc)) from None

    return step


def after(*steps: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    async def prepare() -> None:
        for step in steps:
            await step()

    return prepare


@case
def create_delivery(client: Any) -> Steps:
    return nothing, create(client)


@case
def create_delivery_in_order(client: Any) -> Steps:
    return create(client, "first", order="o"), create(client, order="o")


@case
def create_delivery_parked(client: Any) -> Steps:
    closed = lambda: client.hset(KEYS.webhook_limits("e"), "pause", 4 * 10**12)  # noqa: E731
    return closed, create(client)


@case
def begin_attempt(client: Any) -> Steps:
    return create(client), begin(client)


@case
def begin_attempt_that_probes(client: Any) -> Steps:
    fields = {"opens": 1, "open_until": 1, "failures": 3}
    target = lambda: client.hset(KEYS.webhook_limits("e"), mapping=fields)  # noqa: E731
    return after(create(client), target), begin(client)


@case
def begin_attempt_at_a_rate(client: Any) -> Steps:
    return create(client), begin(client, rate_per_s=1.0)


@case
def begin_attempt_held_back(client: Any) -> Steps:
    taken = create(client, "other"), begin(client, "other", concurrency=1)
    return after(*taken, create(client)), begin(client, concurrency=1)


@case
def begin_attempt_at_a_full_host(client: Any) -> Steps:
    taken = create(client, "other", endpoint="o"), begin(client, "other")
    return after(*taken, create(client)), begin(client, host_concurrency=1)


@case
def begin_attempt_out_of_turn(client: Any) -> Steps:
    both = create(client, "first", order="o"), create(client, order="o")
    return after(*both), begin(client)


@case
def begin_attempt_behind_one_that_ended(client: Any) -> Steps:
    ended = lambda: client.hset(KEYS.webhook("first"), "state", "dead")  # noqa: E731
    both = create(client, "first", order="o"), create(client, order="o")
    return after(*both, ended), begin(client)


@case
def begin_attempt_too_late(client: Any) -> Steps:
    late = lambda: client.hset(KEYS.webhook("d"), "deadline", 1)  # noqa: E731
    return after(create(client, order="o"), create(client, "next", order="o"), late), begin(client)


@case
def record_delivered(client: Any) -> Steps:
    verdict = Verdict(
        DeliveryState.DELIVERED, breaker=BreakerSign.ALIVE, endpoint=EndpointSign.TAKES
    )
    fields = {"failing_since": 1, "failures": 2}
    failing = lambda: client.hset(KEYS.webhook_endpoint("e"), mapping=fields)  # noqa: E731
    waiting = create(client, "parked")
    held = begin(client, "parked", concurrency=1)
    prepare = after(create(client), begin(client), failing, waiting, held)
    return prepare, record(client, verdict)


@case
def record_delivered_at_a_full_host(client: Any) -> Steps:
    verdict = Verdict(
        DeliveryState.DELIVERED, breaker=BreakerSign.ALIVE, endpoint=EndpointSign.TAKES
    )
    waiting = create(client, "next", endpoint="n")
    held = begin(client, "next", host_concurrency=1)
    return after(create(client), begin(client), waiting, held), record(client, verdict)


@case
def record_a_recovery(client: Any) -> Steps:
    verdict = Verdict(
        DeliveryState.DELIVERED, breaker=BreakerSign.ALIVE, endpoint=EndpointSign.TAKES
    )
    fields = {"opens": 1, "open_until": 1, "failures": 3, "share": 1}
    target = lambda: client.hset(KEYS.webhook_limits("e"), mapping=fields)  # noqa: E731
    return after(create(client), begin(client), target), record(client, verdict)


@case
def record_waiting(client: Any) -> Steps:
    verdict = Verdict(
        DeliveryState.WAITING,
        10.0,
        charged=False,
        breaker=BreakerSign.FAILING,
        endpoint=EndpointSign.REFUSES,
        slow_down=True,
        pause_s=3.0,
    )
    return after(create(client), begin(client)), record(client, verdict)


@case
def record_dead(client: Any) -> Steps:
    verdict = Verdict(
        DeliveryState.DEAD, breaker=BreakerSign.ALIVE, endpoint=EndpointSign.GONE, reason="gone"
    )
    both = create(client, order="o"), create(client, "next", order="o")
    return after(*both, begin(client)), record(client, verdict)


@case
def retry_delivery(client: Any) -> Steps:
    closed = lambda: client.hset(KEYS.webhook_limits("e"), "pause", 4 * 10**12)  # noqa: E731
    store = DeliveryStore(client, KEYS, DeliverySecrets(None))
    return after(closed, create(client, delay_ms=1000)), lambda: store.retry("d")


@case
def replay_delivery(client: Any) -> Steps:
    verdict = Verdict(DeliveryState.DEAD, breaker=BreakerSign.ALIVE, endpoint=EndpointSign.REFUSES)

    async def step() -> None:
        await DeliveryStore(client, KEYS, DeliverySecrets(None)).replay(
            "d",
            token="t",
            job_keys=KEYS.job_keys("r", Priority.LOW),
            job_id="r",
            job_body=BODY,
            delay_ms=0,
            deadline_ms=1000,
            secret=b"s",
        )

    return after(create(client), begin(client), record(client, verdict)), step


@case
def end_jobless(client: Any) -> Steps:
    gone = lambda: client.delete(KEYS.job("webhook:d"))  # noqa: E731
    store = AttemptStore(client, KEYS, retention_s=1000)
    prepare = after(create(client, order="o"), create(client, "next", order="o"), gone)
    return prepare, lambda: store.end_jobless(seen_s=0, most=10)


@case
def disable_endpoint(client: Any) -> Steps:
    store = EndpointStore(client, KEYS, DeliverySecrets(None))
    return nothing, lambda: store.switch("e", on=False, name="n")


@case
def enable_endpoint(client: Any) -> Steps:
    store = EndpointStore(client, KEYS, DeliverySecrets(None))
    off = lambda: store.switch("e", on=False, name="n")  # noqa: E731
    held = create(client, "other"), begin(client, "other", concurrency=1), create(client)
    parked = begin(client, concurrency=1)
    return after(*held, parked, off), lambda: store.switch("e", on=True, name="n")


# -- LLM requests -----------------------------------------------------------------


def requests(client: Any) -> RequestStore:
    return RequestStore(client, KEYS, Retention(unread_s=259_200, read_s=3600, equal_s=600))


def submit(client: Any, *ids: str, tokens: int = 5, **more: Any) -> Callable[[], Awaitable[Any]]:
    rows = [(id_, LLMRequest(GROUP, f'{{"q":"{id_[:1]}"}}'.encode(), tokens)) for id_ in ids]
    values: dict[str, Any] = {
        "flush_now": NOW,
        "flush_later": PreparedJob("later", BODY),
        "rules": RULES,
        "dedupe": True,
        "deadline_ms": 10**13,
        "callback": TOLD,
        **more,
    }
    return lambda: requests(client).submit(rows, **values)


def sealed(client: Any, id_: str = "batch", **more: Any) -> Callable[[], Awaitable[Any]]:
    store = BatchStore(client, KEYS)
    keys = KEYS.job_keys("job", Priority.DEFAULT)
    values: dict[str, Any] = {"rules": RULES, "full_only": False, **more}
    job = PreparedJob("job", BODY)
    return lambda: store.seal(GROUP, id_, job=job, job_keys=keys, **values)


@case
def submit_llm(client: Any) -> Steps:
    return nothing, submit(client, "a", "b", "c")


@case
def submit_llm_to_others(client: Any) -> Steps:
    return submit(client, "a", "b"), submit(client, "c", "d")


@case
def submit_llm_equal_to_one_that_waits(client: Any) -> Steps:
    return submit(client, "a1", deadline_ms=10**14), submit(client, "a2")


@case
def submit_llm_equal_to_one_in_a_batch(client: Any) -> Steps:
    first = submit(client, "a1", deadline_ms=10**14)
    return after(first, sealed(client)), submit(client, "a2")


@case
def submit_llm_equal_to_one_that_is_answered(client: Any) -> Steps:
    answered = lambda: requests(client).answer("a1", ANSWER)  # noqa: E731
    return after(submit(client, "a1"), answered), submit(client, "a2")


@case
def submit_llm_urgent(client: Any) -> Steps:
    keys = KEYS.job_keys("single", Priority.HIGH)
    request = LLMRequest(GROUP, b"{}", 5)
    job = PreparedJob("single", BODY)
    return nothing, lambda: requests(client).submit_urgent(
        "u", request, job=job, job_keys=keys, deadline_ms=None, callback=TOLD
    )


def answering(client: Any, answer: Answer) -> Callable[[], Awaitable[Any]]:
    return lambda: requests(client).answer("a", answer)


@case
def answer_llm_that_waits(client: Any) -> Steps:
    return submit(client, "a", "b"), answering(client, ANSWER)


@case
def answer_llm_in_a_batch(client: Any) -> Steps:
    return after(submit(client, "a", "b"), sealed(client)), answering(client, ANSWER)


@case
def answer_llm_with_an_error(client: Any) -> Steps:
    return after(submit(client, "a", "b"), sealed(client)), answering(client, FAILED)


@case
def answer_llm_the_last_that_waits(client: Any) -> Steps:
    return submit(client, "a"), answering(client, FAILED)


@case
def cancel_llm(client: Any) -> Steps:
    return submit(client, "a", "b"), lambda: requests(client).cancel("a")


@case
def cancel_llm_of_several(client: Any) -> Steps:
    both = submit(client, "a1"), submit(client, "a2")
    return after(*both), lambda: requests(client).cancel("a1")


@case
def callbacks_llm(client: Any) -> Steps:
    # The queue is full when the request ends, so that its callback still waits for its job.
    full = RequestStore(client, KEYS, requests(client).retention, most_jobs=1)
    prepare = after(submit(client, "a"), lambda: full.answer("a", ANSWER))
    return prepare, requests(client).send_callbacks


@case
def retry_llm(client: Any) -> Steps:
    keys = KEYS.job_keys("again", Priority.DEFAULT)
    job = PreparedJob("again", BODY)
    prepare = after(submit(client, "a", "b"), answering(client, FAILED))
    return prepare, lambda: requests(client).retry(["a"], job=job, job_keys=keys)


@case
def count_unanswered(client: Any) -> Steps:
    return submit(client, "a"), lambda: requests(client).count_unanswered("a", run=1)


@case
def seal_batch(client: Any) -> Steps:
    return submit(client, "a", "b"), sealed(client)


@case
def seal_batch_in_part(client: Any) -> Steps:
    rules = FlushRules(2, 10**9, 10**9, 1000)
    return submit(client, "a", "b", "c"), sealed(client, rules=rules, full_only=True)


@case
def seal_batch_by_age_too_early(client: Any) -> Steps:
    rules = FlushRules(3, 10**9, 10**9, 10**7)
    flush = PreparedJob("llm:age:gone", BODY)
    return submit(client, "a", "b"), sealed(client, rules=rules, by_age=flush)


@case
def unanswered_sizes(client: Any) -> Steps:
    return after(submit(client, "a", "b"), sealed(client)), lambda: BatchStore(client, KEYS).sizes(
        "batch"
    )


@case
def take_batch(client: Any) -> Steps:
    prepare = after(submit(client, "a"), sealed(client))
    script = load("worker.llm", "take_batch", "..queue")
    return prepare, lambda: script.run(client, [KEYS.llm_batch("batch")])


def moving(client: Any, to: BatchState, **more: Any) -> Callable[[], Awaitable[Any]]:
    store = BatchStore(client, KEYS)

    async def step() -> None:
        names = [KEYS.llm_batch("batch"), KEYS.llm_items("batch"), KEYS.llm_open("batch")]
        names += [KEYS.llm_underway, KEYS.queue(), KEYS.job("files"), KEYS.result("files")]
        ttl = 1000 if to.is_end else ""
        then = ["files", BODY] if to.is_end else ["", b""]
        args = ["sealed", 0, to.value, ttl, "batch", *then, "field", "value"]
        await load("worker.llm", "move_batch", "..queue").run(
            store.client, [*names, KEYS.wake], args
        )

    return step


@case
def move_batch(client: Any) -> Steps:
    return after(submit(client, "a"), sealed(client)), moving(client, BatchState.UPLOADING)


@case
def move_batch_to_its_end(client: Any) -> Steps:
    prepare = after(submit(client, "a"), sealed(client), answering(client, ANSWER))
    return prepare, moving(client, BatchState.DONE)


@case
def split_batch(client: Any) -> Steps:
    names = [KEYS.llm_batch("new"), KEYS.llm_items("new"), KEYS.llm_open("new")]
    names += [KEYS.llm_batches, KEYS.llm_underway, KEYS.queue(), KEYS.job("n"), KEYS.result("n")]
    names += [KEYS.wake, KEYS.llm_batch("batch"), KEYS.llm_open("batch"), KEYS.llm_batch("batch")]
    args = [KEYS.llm, "batch", "new", "batch", "n", BODY, 60_000, 100, 1000, 1, "a", "b"]
    script = load("worker.llm", "split_batch", "..queue")
    prepare = after(submit(client, "a", "b", "c"), sealed(client))
    return prepare, lambda: script.run(client, names, args)


@pytest.mark.parametrize("mode", ["wait", "single"])
async def test_detaching_leaves_no_half_state(server: Any, mode: Any) -> None:
    keys = KEYS.job_keys("again", Priority.DEFAULT)
    store = BatchStore(server, KEYS)
    row = ("a", PreparedJob("again", BODY), keys)
    prepare = after(submit(server, "a", "b"), sealed(server))
    await prove(server, prepare, lambda: store.detach("batch", [row], mode=mode))


@case
def hasten_batch(client: Any) -> Steps:
    keys = KEYS.job_keys("job", Priority.DEFAULT)
    store = BatchStore(client, KEYS)
    prepare = after(submit(client, "a"), sealed(client))
    return prepare, lambda: store.hasten(PreparedJob("job", BODY), keys)


@case
def rescue_llm(client: Any) -> Steps:
    gone = lambda: client.delete(KEYS.job("job"))  # noqa: E731
    prepare = after(submit(client, "a"), sealed(client), gone)
    orphans = Orphans(client, KEYS)
    return prepare, lambda: orphans.rescue_batches([("batch", PreparedJob("job", BODY))])


def limiter(client: Any) -> RateLimiter:
    limits = call_limits(requests_per_minute=60, tokens_per_minute=600, max_concurrency=4)
    return RateLimiter(client, KEYS, "openai", limits, lease_s=10)


@case
def admit_llm(client: Any) -> Steps:
    admitted = lambda: limiter(client).admit("b", urgent=True, tokens=5)  # noqa: E731
    return admitted, lambda: limiter(client).admit("a", urgent=True, tokens=5)


@case
def release_llm(client: Any) -> Steps:
    admitted = lambda: limiter(client).admit("a", urgent=True, tokens=5)  # noqa: E731
    return admitted, lambda: limiter(client).release("a", "busy", wait_s=3)


# -- the cache --------------------------------------------------------------------


def run(
    client: Any, home: str, name: str, keys: list[str], args: list[Any], *more: str
) -> Callable[[], Awaitable[Any]]:
    return lambda: load(home, name, *more).run(client, keys, args)


STAGED_VALUE = staged_of("{arq}e", b"t" * 8)


def leased(client: Any) -> Callable[[], Awaitable[Any]]:
    args = [b"t" * 8, 600_000, "", "grant"]
    return run(
        client, "cache.coherence", "lease", ["{arq}e", "{arq}v", "{arq}l", "{arq}intents"], args
    )


async def version_of(client: Any) -> bytes:
    """Through GETRANGE, which fails where the key is no string: as the step would."""
    found: bytes = await client.getrange("{arq}e", 0, -1)
    return found


@case
def lease(client: Any) -> Steps:
    return nothing, leased(client)


@case
def lease_of_another(client: Any) -> Steps:
    other = [b"o" * 8, 1000, "", "grant"]
    return leased(client), run(
        client, "cache.coherence", "lease", ["{arq}e", "{arq}v", "{arq}l", "{arq}intents"], other
    )


@case
def fill(client: Any) -> Steps:
    async def step() -> None:
        args = [b"t" * 8, await version_of(client), b"envelope", 5000]
        await load("cache.coherence", "fill").run(client, ["{arq}e", "{arq}v", "{arq}l"], args)

    return leased(client), step


@case
def fill_with_dependencies(client: Any) -> Steps:
    listed = run(
        client, "cache.coherence", "depend", ["{arq}dep"], ["other", 10**16, 600_000, 5, 10**16]
    )

    async def step() -> None:
        args = [b"t" * 8, await version_of(client), b"envelope", 5000]
        args += ["who", 10**16, 600_000, 5, 10**16]
        await load("cache.coherence", "fill").run(
            client, ["{arq}e", "{arq}v", "{arq}l", "{arq}dep", "{arq}org"], args
        )

    return after(leased(client), listed), step


@case
def fill_large(client: Any) -> Steps:
    async def step() -> None:
        await client.set(STAGED_VALUE, b"envelope", px=TTL_MS)
        args = [b"t" * 8, await version_of(client), b"", 5000]
        await load("cache.coherence", "fill").run(client, ["{arq}e", "{arq}v", "{arq}l"], args)

    return leased(client), step


@case
def release(client: Any) -> Steps:
    return leased(client), run(client, "cache.coherence", "release", ["{arq}l"], [b"t" * 8])


@case
def depend(client: Any) -> Steps:
    args = ["who", 10**16, 600_000, 5, 10**16]
    first = run(client, "cache.coherence", "depend", ["{arq}dep", "{arq}org"], ["other", *args[1:]])
    return first, run(client, "cache.coherence", "depend", ["{arq}dep", "{arq}org"], args)


def forget(client: Any, ttl_ms: int, most: int = 9) -> Steps:
    names = ["{arq}dep", "lc:{arq}:intents", "lc:{arq}", "{arq}stream"]
    args = [1, 1, b"t" * 8, ttl_ms, "lc:{", "lc:{arq}", 10, 60, 5000, most, 1]
    listed = ["b", 10**16, 600_000, 5, 10**16]
    first = run(client, "cache.coherence", "depend", ["{arq}dep"], listed)
    before = run(client, "cache.coherence", "forget", names, [*args[:3], TTL_MS, *args[4:]])
    return after(first, before), run(client, "cache.coherence", "forget", names, args)


CASES["forget"] = lambda client: forget(client, 30_000)
CASES["forget_at_the_end"] = lambda client: forget(client, 0)
CASES["forget_with_an_index_left"] = lambda client: forget(client, 30_000, most=0)


def case_of_a_cluster(name: str, client: Any) -> Steps:
    """A case as a cluster has it: there, forget.lua is given nothing of other slots."""
    return forget_there(client) if name.startswith("forget") else CASES[name](client)


def forget_there(client: Any, ttl_ms: int = 30_000) -> Steps:
    listed = ["b", 10**16, 600_000, 5, 10**16]
    names = ["{arq}dep", "lc:{arq}:intents", "lc:{arq}"]
    args = [1, 1, b"t" * 8, ttl_ms, "", "", 10, 60, 5000, 0, 1]
    first = run(client, "cache.coherence", "depend", ["{arq}dep"], listed)
    return first, run(client, "cache.coherence", "forget", names, args)


@case
def prune(client: Any) -> Steps:
    prepare, end = forget_there(client, 0)
    args = [10**17, 2]
    return after(prepare, end), run(
        client, "cache.coherence", "prune", ["{arq}dep", "{arq}dep:intents"], args
    )


@case
def publish(client: Any) -> Steps:
    return nothing, run(
        client, "cache.coherence", "publish", ["{arq}stream"], [10, 60, "kind", "names"]
    )


def named(client: Any, mode: str, owner: bytes = b"t" * 8) -> Callable[[], Awaitable[Any]]:
    async def step() -> None:
        text = load("cache", "named_lease").source.replace("up_s * 1000 < ttl_ms", "false")
        await client.eval(text, 2, "{arq}lease", "{arq}fence", owner, TTL_MS, mode, 2 * TTL_MS)

    return step


@case
def named_lease(client: Any) -> Steps:
    return after(named(client, "take"), named(client, "give_back")), named(client, "take")


@case
def named_lease_renewed(client: Any) -> Steps:
    return named(client, "take"), named(client, "renew")


@case
def named_lease_given_back(client: Any) -> Steps:
    return named(client, "take"), named(client, "give_back")


# Nothing may expire while a script is tried, on a busy machine either.
TTL_MS = 600_000
WINDOW = ["{arq}e", "{arq}s", "{arq}l", "{arq}set", "{arq}aside"]


def window_filled(client: Any) -> Callable[[], Awaitable[Any]]:
    async def step() -> None:
        version = await version_of(client)
        args = [b"t" * 8, version, b"m" * 8, TTL_MS, 1, 10, 1, b"one"]
        await load("cache", "messages_fill", ".coherence").run(client, WINDOW, args)

    return step


def window_leased(client: Any) -> Callable[[], Awaitable[Any]]:
    keys = ["{arq}e", "{arq}s", "{arq}l", "{arq}intents"]
    return run(client, "cache.coherence", "lease", keys, [b"t" * 8, 600_000, "", "grant"])


def window_appended(client: Any, predecessor: str, number: int) -> Callable[[], Awaitable[Any]]:
    bounds = [TTL_MS, 10, TTL_MS, 10, 1000, 2**53]  # called after every load has begun
    args = [b"m" * 8, predecessor, *bounds, number, b"text%d" % number]
    return run(client, "cache", "messages_append", WINDOW, args, ".coherence")


@case
def messages_fill(client: Any) -> Steps:
    prepare = after(window_leased(client), window_appended(client, "1", 2))
    return prepare, window_filled(client)


@case
def messages_fill_large(client: Any) -> Steps:
    async def step() -> None:
        await client.zadd(STAGED_VALUE, {"one": 1})
        args = [b"t" * 8, await version_of(client), b"m" * 8, TTL_MS, 1, 10, ""]
        await load("cache", "messages_fill", ".coherence").run(client, WINDOW, args)

    return after(window_leased(client), window_appended(client, "1", 2)), step


@case
def messages_append(client: Any) -> Steps:
    prepare = after(window_leased(client), window_filled(client))
    return prepare, window_appended(client, "1", 2)


@case
def messages_append_to_a_gap(client: Any) -> Steps:
    gap = window_appended(client, "2", 3)
    prepare = after(window_leased(client), window_filled(client), gap)
    return prepare, window_appended(client, "1", 2)


@case
def messages_list(client: Any) -> Steps:
    prepare = after(window_leased(client), window_filled(client))
    keys = ["{arq}e", "{arq}s", "{arq}set"]
    return prepare, run(client, "cache", "messages_list", keys, [b"m" * 8, "", 1])


# -- the proof --------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
async def test_a_script_writes_everything_or_nothing(server: Any, name: str) -> None:
    prepare, step = CASES[name](server)
    trials = await prove(server, prepare, step)
    assert trials.made


# Their values are sent before, as if each were large.
STAGED = [
    "enqueue", "enqueue_many", "dead_retry_of_what_is_listed", "poll_ends_done",
    "create_delivery", "submit_llm", "submit_llm_urgent", "answer_llm_that_waits",
]  # fmt: skip


@pytest.mark.parametrize("name", STAGED)
async def test_a_script_with_large_values_writes_everything_or_nothing(
    server: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (staging, store, dead, records, poll, deliveries, llm_requests, answer_store):
        monkeypatch.setattr(module, "LARGE", 0)
    monkeypatch.setattr(deliveries, "_SMALL_BODY", 0)
    prepare, step = CASES[name](server)
    trials = await prove(server, prepare, step)
    assert trials.made


CACHE = [name for name in CASES if list(CASES).index(name) >= list(CASES).index("lease")]
# What a store that failed may cost: its value or window is a miss, an index may list it, and what was
# sent before stays until it expires.
LOST = {
    "fill": {b"{arq}v", b"{arq}dep", b"{arq}org", STAGED_VALUE.encode()},
    "messages": {b"{arq}s", b"{arq}set", b"{arq}aside", STAGED_VALUE.encode()},
}


@pytest.mark.parametrize("name", CACHE)
async def test_the_next_call_repairs_a_write_of_the_cache_that_failed(
    server: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_is = load
    monkeypatch.setattr(sys.modules[__name__], "load", lambda *names: failing(as_it_is(*names)))
    prepare, step = CASES[name](server)
    await server.flushall()
    await prepare()
    before = await snapshot(server)
    await step()
    whole = await contents(server)
    for at in count(1):
        await restore(server, before)
        await server.set(FAIL_AT, at)
        with suppress(ResponseError):
            await step()
        await server.delete(FAIL_AT)
        if not await server.delete(HAS_FAILED):
            break
        await step()
        repaired = await contents(server)
        differs = {key for key in whole | repaired if whole.get(key) != repaired.get(key)}
        assert differs <= LOST.get(name.partition("_")[0], set()), at
        for answer in (b"{arq}v", b"{arq}s"):
            assert repaired.get(answer) in (None, whole.get(answer)), at
        assert b"{arq}s" not in repaired or b"{arq}set" not in differs, at
    assert at > 1 or name == "messages_list"


def test_every_script_is_among_them() -> None:
    folders = [Path(package.__file__ or "").parent for package in (cache, worker)]
    scripts = {path.stem for folder in folders for path in folder.rglob("lua/[!_]*.lua")}
    names = set(CASES) | {"detach_llm", "poll", "attempt_deliveries", "answer_llm"}
    shown = {"switch_endpoint": "enable_endpoint"}
    assert {shown.get(name, name) for name in scripts} <= names
