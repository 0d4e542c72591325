"""Hostile keys on the server harm one job: it becomes a named dead letter, and all else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from arq.worker import Retry, func

from cache.encoding import codec
from tests.support.engine import running
from tests.support.queues import queue_of, stores_of
from tests.support.wait import eventually
from worker import Priority, call
from worker.engine import EngineOptions, RetryPolicy, chain, job
from worker.engine.poll import Poll
from worker.keys import EngineKeys, QueueKeys
from worker.queue.letters import DeadLetter

pytestmark = pytest.mark.integration

# Short leases, so that forged claims lapse during the test.
OPTIONS = EngineOptions(lease_s=0.6, poll_s=0.1, heartbeat_s=0.3, park_s=0.3)
NOW = 1_700_000_000_000
Prepare = Callable[[Any, str, str], Awaitable[None]]


async def double(ctx: dict[str, Any], n: int = 1) -> int:
    return 2 * n


def fields(**changes: Any) -> bytes:
    return codec.encode({"t": None, "f": "double", "a": [1], "k": {}, "et": NOW, **changes})


def body(data: bytes) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        await client.set(f"{prefix}job:{id_}", data)

    return prepare


def key_of_type(kind: str, name: str) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        await client.set(f"{prefix}job:{id_}", fields())
        key = f"{prefix}{name}:{id_}"
        await client.delete(key)
        await make_key(client, key, kind)

    return prepare


async def make_key(client: Any, key: str, kind: str) -> None:
    if kind == "hash":
        await client.hset(key, "a", "b")
    elif kind == "list":
        await client.rpush(key, "a")
    elif kind == "set":
        await client.sadd(key, "a")
    elif kind == "zset":
        await client.zadd(key, {"a": 1})
    elif kind == "stream":
        await client.xadd(key, {"a": "b"})
    else:
        await client.set(key, "text")


def retry_is(value: bytes) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        await client.set(f"{prefix}job:{id_}", fields())
        await client.set(f"{prefix}retry:{id_}", value)

    return prepare


async def too_long(client: Any, prefix: str, id_: str) -> None:
    await client.setrange(f"{prefix}job:{id_}", 64 * 1024 * 1024, b"x")


def unique_is(kind: str) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        await make_key(client, f"{prefix}unique:u", kind)
        await client.set(f"{prefix}job:{id_}", fields(o={"u": "u"}))

    return prepare


THEN: dict[str, Any] = {
    "f": "double",
    "a": [],
    "k": {},
    "q": "x",
    "id": None,
    "delay": 0,
    "xs": None,
    "o": {},
}
UNDECODABLE: dict[str, Prepare] = {
    **{f"job is a {k}": key_of_type(k, "job") for k in ("hash", "list", "set", "zset", "stream")},
    **{
        f"retry is {value!r}": retry_is(value)
        for value in (b"x", b"", b"\xff\xfe", b"-5", b"1e400", b"nan", b"9" * 30, b"1.5")
    },
    "64 MiB of body": too_long,
    "deep lists": body(b"\x91" * 200_000),
    "deep maps": body(b"\x81\xa1a" * 200_000),
    "a list of four billion": body(b"\xdd\xff\xff\xff\xff"),
    "a map of four billion": body(b"\xdf\xff\xff\xff\xff\xa1a"),
    "an extension": body(b"\xd4\x63a"),
    "empty": body(b""),
    "not a map": body(codec.encode([1, 2])),
    "no fields": body(codec.encode({})),
    **{
        f"{name} is {value!r}"[:60]: body(fields(**{name: value}))
        for name, value in (
            ("t", 2**63), ("t", "x"), ("t", -1), ("t", True), ("t", 1.5), ("f", 5), ("f", ""),
            ("f", "x" * 5000), ("a", {}), ("a", 5), ("k", []), ("k", {1: 2}), ("et", 2**60),
            ("et", "x"), ("et", None), ("et", -1), ("et", float("nan")), ("o", 5), ("o", [1]),
            ("o", {"x": "x"}), ("o", {"x": 2**63}), ("o", {"u": 5}), ("o", {"u": {}}),
            ("o", {"u": ["a"]}), ("o", {"u": ""}), ("o", {"u": "x" * 1001}),
            ("o", {"then": 5}), ("o", {"then": {}}), ("o", {"then": {**THEN, "q": 5}}),
            ("o", {"then": {**THEN, "q": {}}}), ("o", {"then": {**THEN, "delay": "x"}}),
            ("o", {"then": {**THEN, "delay": 2**62}}), ("o", {"then": {**THEN, "delay": 1.5}}),
            ("o", {"then": {**THEN, "id": [1]}}), ("o", {"then": {**THEN, "o": 5}}),
            ("o", {"g": 5}), ("o", {"g": {"id": 5, "i": 0}}), ("o", {"g": {"id": "x", "i": "x"}}),
            ("o", {"g": {"id": "x", "i": 2**63}}), ("o", {"g": {"id": "x"}}),
        )
    },
}  # fmt: skip


def then_is(queue: str) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        await make_key(client, f"{prefix}other", "hash")
        options = {"then": {**THEN, "q": queue, "id": f"{id_}-next"}}
        await client.set(f"{prefix}job:{id_}", fields(o=options))

    return prepare


def gathering_is(**stored: Any) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        if stored:
            await client.hset(f"{prefix}gather:g", mapping=stored)
        else:
            await make_key(client, f"{prefix}gather:g", "list")
        await client.set(f"{prefix}job:{id_}", fields(o={"g": {"id": "g", "i": 0}}))

    return prepare


def claim_is(claim: bytes) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        await client.set(f"{prefix}job:{id_}", fields())
        await client.set(f"{prefix}in-progress:{id_}", claim)
        await client.zadd(f"{prefix}queue:running", {id_: 1})

    return prepare


def running_type(kind: str) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        await key_of_type(kind, "in-progress")(client, prefix, id_)
        await client.zadd(f"{prefix}queue:running", {id_: 1})

    return prepare


def score_is(score: str) -> Prepare:
    async def prepare(client: Any, prefix: str, id_: str) -> None:
        await client.set(f"{prefix}job:{id_}", fields())
        await client.zadd(f"{prefix}queue", {id_: score})

    return prepare


async def parked_is_text(client: Any, prefix: str, id_: str) -> None:
    await client.hset(f"{prefix}parked", id_, "x")
    await client.set(f"{prefix}job:{id_}", fields(f="unheard-of"))


# These run, or die for another reason: the odd value can be repaired or ignored.
OVER: dict[str, Prepare] = {
    "a retry counter of another type": key_of_type("hash", "retry"),
    "a result of another type": key_of_type("list", "result"),
    **{f"a claim that is a {kind}": running_type(kind) for kind in ("hash", "list", "zset")},
    **{
        f"the claim {claim!r}": claim_is(claim)
        for claim in (
            b"x|9|0|0", b"x|0|0|0", b"x|3|abc|0", b"x|3|\xff|0", b"x|3|-inf|0", b"x|3|nan|0",
            b"x|3|0x10|0", b"x|3|1e999|0", b"x|3|0|99999999999999999999999", b"x|3|0|x", b"x|3",
            b"|||", b"", b"\xff", b"x|3|1|1|2|3|0|1",
        )
    },
    "due at -inf": score_is("-inf"),
    "due at -1e300": score_is("-1e300"),
    "parked since nobody knows when": parked_is_text,
    "a unique key of another type": unique_is("hash"),
    "what follows has a priority that does not exist": then_is("other"),
    "a gathering that is a list": gathering_is(),
    "a gathering of nothing": gathering_is(size="x"),
    "a gathering without its job": gathering_is(size="1"),
    "a gathering of too many": gathering_is(size="1e300", head="a", tail="b", queue="q", job="j"),
    "a gathering whose priority does not exist": gathering_is(
        size="1", head=b"", tail=b"", queue="other", job="j"
    ),
}  # fmt: skip


async def put_in(client: Any, prefix: str, id_: str, prepare: Prepare) -> None:
    await client.zadd(f"{prefix}queue", {id_: 1})
    await prepare(client, prefix, id_)


async def neighbors(client: Any, prefix: str, count: int) -> list[Any]:
    queue = queue_of(client, prefix)
    return [await queue.enqueue("double", n) for n in range(count)]


@pytest.mark.parametrize("name", UNDECODABLE)
async def test_a_job_that_cannot_be_read_is_an_undecodable_dead_letter(
    client: Any, prefix: str, name: str
) -> None:
    queue = queue_of(client, prefix)
    before = await neighbors(client, prefix, 3)
    await put_in(client, prefix, "bad", UNDECODABLE[name])
    async with running(client, prefix, [double], options=OPTIONS, max_jobs=2):
        assert [await each.result(timeout_s=10) for each in before] == [0, 2, 4]
        letter = await eventually(lambda: queue.dead.get("bad"))
        assert letter.reason == "undecodable"
        (after,) = await neighbors(client, prefix, 1)
        assert await after.result(timeout_s=10) == 0
    assert not await client.exists(f"{prefix}job:bad", f"{prefix}in-progress:bad")
    assert await client.zscore(f"{prefix}queue", "bad") is None


@pytest.mark.parametrize("name", OVER)
async def test_forged_keys_beside_a_job_stop_no_other_job(
    client: Any, prefix: str, name: str
) -> None:
    queue = queue_of(client, prefix)
    before = await neighbors(client, prefix, 3)
    await put_in(client, prefix, "odd", OVER[name])

    async def over() -> bool:
        is_gone = await client.zscore(f"{prefix}queue", "odd") is None
        return is_gone and not await client.exists(f"{prefix}job:odd")

    async with running(client, prefix, [double], options=OPTIONS, max_jobs=2) as worker:
        assert [await each.result(timeout_s=10) for each in before] == [0, 2, 4]
        await eventually(over)
        (after,) = await neighbors(client, prefix, 1)
        assert await after.result(timeout_s=10) == 0
        assert worker.is_connected
    await queue.stats()


async def surrogate(ctx: dict[str, Any]) -> None:
    raise ValueError("\ud800")


async def far_future(ctx: dict[str, Any]) -> None:
    raise Retry(defer=10**30)


async def beyond_floats(ctx: dict[str, Any]) -> None:
    raise Retry(defer=10**400)


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def silent(ctx: dict[str, Any]) -> None:
    raise Silent


async def no_policy(ctx: dict[str, Any]) -> None:
    raise ValueError("x")


class Broken(RetryPolicy):
    def decide(self, *_args: Any, **_more: Any) -> Any:
        raise RuntimeError("broken")


ODD_JOBS: list[Any] = [
    func(surrogate, name="surrogate"),
    func(far_future, name="far_future"),
    func(beyond_floats, name="beyond_floats"),
    func(silent, name="silent"),
    job(no_policy, name="no_policy", retry=Broken()),
]


@pytest.mark.parametrize("name", [each.name for each in ODD_JOBS])
async def test_what_a_job_raises_ends_only_that_job(client: Any, prefix: str, name: str) -> None:
    queue = queue_of(client, prefix)
    before = await neighbors(client, prefix, 3)
    await queue.enqueue(name, job_id="odd")
    functions = [double, *ODD_JOBS]

    async def over() -> DeadLetter | float | None:
        # The job is dead, or deferred by at most the longest allowed delay.
        score = await client.zscore(f"{prefix}queue", "odd")
        return await queue.dead.get("odd") or (
            score if score is not None and await client.exists(f"{prefix}retry:odd") else None
        )

    async with running(client, prefix, functions, options=OPTIONS, max_jobs=2):
        assert [await each.result(timeout_s=10) for each in before] == [0, 2, 4]
        found = await eventually(over)
        (after,) = await neighbors(client, prefix, 1)
        assert await after.result(timeout_s=10) == 0
    if isinstance(found, float):
        seconds, _ = await client.time()
        assert found / 1000 - (seconds + 1) <= 366 * 86_400  # the server's seconds are truncated


async def test_a_foreign_key_in_place_of_a_queue_applies_no_partial_end(
    client: Any, prefix: str
) -> None:
    """While a needed key has another type, no part of an end is written; later all of it is."""
    started, go = asyncio.Event(), asyncio.Event()

    async def hold(ctx: dict[str, Any]) -> str:
        started.set()
        await go.wait()
        return "done"

    held = await queue_of(client, prefix).enqueue("hold", job_id="a")
    functions = [func(hold, name="hold")]
    options = EngineOptions(lease_s=30, poll_s=0.1)
    async with running(client, prefix, functions, options=options) as worker:
        await asyncio.wait_for(started.wait(), 10)
        await make_key(client, f"{prefix}parked", "list")
        go.set()

        async def refused() -> bool:
            return not worker.is_connected

        await eventually(refused)
        assert await client.exists(f"{prefix}job:a", f"{prefix}in-progress:a") == 2
        assert not await client.exists(f"{prefix}result:a")
        await client.delete(f"{prefix}parked")
        assert await held.result(timeout_s=20) == "done"


@pytest.mark.parametrize("kind", ["string", "hash", "list", "stream"])
async def test_a_foreign_key_in_place_of_the_wake_token_only_delays_jobs(
    client: Any, prefix: str, kind: str
) -> None:
    queue = queue_of(client, prefix)
    wake = stores_of(queue).keys.wake
    await make_key(client, wake, kind)
    jobs = [await queue.enqueue("double", n) for n in range(3)]
    functions = [func(double, name="double")]
    async with running(client, prefix, functions, options=OPTIONS, max_jobs=1):
        jobs.append(await queue.enqueue("double", 3))
        assert [await each.result(timeout_s=20) for each in jobs] == [0, 2, 4, 6]
    assert await client.type(wake) == kind.encode()


def poll_of(client: Any, prefix: str) -> Poll:
    return Poll(client, EngineKeys(QueueKeys(prefix)), OPTIONS, worker_id="w")


@pytest.mark.parametrize("due", ["-inf", "-5"])
async def test_a_due_time_before_the_epoch_is_due_now(client: Any, prefix: str, due: str) -> None:
    queue = queue_of(client, prefix)
    found = await queue.enqueue("double", 4)
    await client.zadd(stores_of(queue).keys.queue(), {found.id: float(due)})
    (claim,) = (await poll_of(client, prefix).run([], 4)).claims
    assert (claim.job_id, claim.due) == (found.id, "0")


async def test_a_job_in_two_queues_is_claimed_once(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    found = await queue.enqueue("double", priority=Priority.HIGH)
    await client.zadd(stores_of(queue).keys.queue(), {found.id: 1})
    (claim,) = (await poll_of(client, prefix).run([], 4)).claims
    assert claim.job_id == found.id


async def test_an_end_shows_the_job_that_it_adds_to_an_empty_queue(
    client: Any, prefix: str
) -> None:
    queue, poll = queue_of(client, prefix), poll_of(client, prefix)
    then = call("double", 1, priority=Priority.HIGH)
    await queue.enqueue("double", 4, then=then)
    (claim,) = (await poll.run([], 1)).claims
    body = codec.decode(claim.body or b"")
    details = chain.following(claim.job_id, body["o"], 8, now_ms=NOW)
    polled = await poll.run([claim.end("done", details)], 1)
    assert [each.number for each in polled.claims] == [2]
