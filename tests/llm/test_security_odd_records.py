"""One odd record among LLM requests and batches ends by name; every other one is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cache.encoding import codec
from tests.support.llm import ENDPOINT, body, outcome, settings_for, submit
from tests.support.options import call_limits, options_of
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, queue_of, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import InvalidArgument, JobQueue, Priority
from worker.keys import QueueKeys
from worker.llm.grouping import Group
from worker.llm.options import flush_rules
from worker.llm.rate_limits import RateLimiter

pytestmark = pytest.mark.integration

GROUP = Group("openai", ENDPOINT["openai"], "m")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as provider:
        yield provider


async def prepared(queue: JobQueue, texts: list[str]) -> list[str]:
    return await submit(queue, "openai", *texts)


@pytest.mark.parametrize("tokens", [2**63 - 1, 10**12])
async def test_a_refused_output_limit_leaves_its_group_as_it_was(
    client: Any, prefix: str, tokens: int
) -> None:
    queue = queue_of(client, prefix)
    first = await submit(queue, "openai", "a")
    with pytest.raises(InvalidArgument, match="max_tokens"):
        await queue.submit_llm_request(
            {**body("openai", "b"), "max_tokens": tokens},
            provider="openai",
            endpoint=ENDPOINT["openai"],
        )
    others = await submit(queue, "openai", "c", "d")
    assert len({*first, *others}) == 3
    assert (await stores_of(queue).batches.waiting(GROUP))["requests"] == 3


async def test_a_call_beyond_the_minutes_tokens_books_one_minute(client: Any, prefix: str) -> None:
    limits = call_limits(tokens_per_minute=60_000)
    limiter = RateLimiter(client, QueueKeys(prefix), "openai", limits, lease_s=10)
    assert await limiter.admit("large", urgent=True, tokens=10**12) == 0
    wait_s = await limiter.admit("next", urgent=True, tokens=100)
    assert 0 < wait_s < 120


async def seal(queue: JobQueue, batch_id: str) -> None:
    job = stores_of(queue).prepared.batch(batch_id)
    keys = stores_of(queue).keys.job_keys(job.id, Priority.DEFAULT)
    rules = flush_rules(options_of().llm, "openai")
    await stores_of(queue).batches.seal(
        GROUP, batch_id, rules=rules, full_only=False, job=job, job_keys=keys
    )


async def spoil(queue: JobQueue, id_: str, how: str) -> None:
    client, key = stores_of(queue).client, stores_of(queue).keys.llm_request(id_)
    if how == "another type":
        await client.delete(key)
        await client.rpush(key, "x")
    elif how == "deleted":
        await client.delete(key)
    elif how == "a dedupe key of another type":
        await client.hset(key, "dedupe", "odd")
        await client.hset(stores_of(queue).keys.llm_dedupe("odd"), "a", "b")
    elif how == "callbacks are a list":
        await client.rpush(stores_of(queue).keys.llm_callback(id_), "x")
    elif how == "usage is a list":
        await client.delete(stores_of(queue).keys.llm_usage(GROUP.id))
        await client.rpush(stores_of(queue).keys.llm_usage(GROUP.id), "x")
    elif how == "group is forged":
        await client.hset(key, "group", codec.encode(["nobody", "/v1/x", "m"]))
    else:
        field, value = how.split("=")
        await client.hset(key, field, value)


SPOILED = [
    "another type",
    "deleted",
    "a dedupe key of another type",
    "callbacks are a list",
    "usage is a list",
    "group is forged",
    "bytes=x",
    "bytes=9223372036854775807",
    "tokens=9223372036854775807",
    "tokens=x",
    "tries=x",
    "tries=9223372036854775807",
    "deadline=x",
    "deadline=1e400",
    "callers=x",
    "expires=x",
]


@pytest.mark.parametrize("when", ["before it is sealed", "in its batch"])
@pytest.mark.parametrize("how", SPOILED)
async def test_a_spoiled_request_costs_its_neighbors_nothing(
    private_valkey_url: str, fake: FakeProvider, how: str, when: str
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        ids = await prepared(queue, [f"{how} {when} {n}" for n in range(4)])
        if when == "in its batch":
            await seal(queue, "b" * 24)
        await spoil(queue, ids[1], how)
        async with running_worker(settings):
            for id_ in (ids[0], *ids[2:]):
                assert (await outcome(queue, id_)).startswith("echo")

            async def all_ended() -> bool:
                batches = await queue.llm.batches.list()
                return bool(batches) and all(b["state"] in ("done", "failed") for b in batches)

            await eventually(all_ended, deadline_s=40)


@pytest.mark.parametrize("how", ["state", "group", "type"])
async def test_a_spoiled_batch_ends_and_its_neighbors_are_answered(
    private_valkey_url: str, fake: FakeProvider, how: str
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        ids = await prepared(queue, [f"spoiled {how} {n}" for n in range(2)])
        bad, job = "c" * 24, stores_of(queue).prepared.batch("c" * 24)
        await seal(queue, bad)
        if how == "type":
            await stores_of(queue).client.delete(stores_of(queue).keys.llm_batch(bad))
            await stores_of(queue).client.rpush(stores_of(queue).keys.llm_batch(bad), "x")
        else:
            await stores_of(queue).client.hset(stores_of(queue).keys.llm_batch(bad), how, "x")
        async with running_worker(settings):
            others = await prepared(queue, [f"beside {how}"])
            assert (await outcome(queue, others[0])).startswith("echo")
            for id_ in ids:
                assert await outcome(queue, id_) == "error undecodable"
            letter = await eventually(lambda: queue.dead.get(job.id))
            assert letter.reason == "undecodable"
            assert bad not in [batch["id"] for batch in await queue.llm.batches.list()]


@pytest.mark.parametrize("number", ["x", "-1", str(2**53), str(2**63 - 1), "1e400", ""])
async def test_a_batch_of_odd_numbers_is_shown_with_the_others(
    client: Any, prefix: str, number: str
) -> None:
    queue = queue_of(client, prefix)
    for n, id_ in enumerate(("a" * 24, "b" * 24)):
        await submit(queue, "openai", f"{n}")
        await seal(queue, id_)
    key = stores_of(queue).keys.llm_batch("a" * 24)
    for field in {*await client.hkeys(key), b"error", b"error_at", b"deadline"}:
        before = await client.hget(key, field)
        if field not in (b"state", b"group"):
            await client.hset(key, field, number)
            assert len(await queue.llm.batches.list()) == 2, field
            await queue.llm.batches.get("a" * 24)
            await queue.llm.batches.progress()
            if before is not None and field != b"error":
                await client.hset(key, field, before)


async def test_a_group_that_cannot_be_read_stops_no_flush(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        await stores_of(queue).client.hset(
            stores_of(queue).keys.llm_groups, mapping={"bad": b"\xc1", "odd": b"\x05"}
        )
        ids = await prepared(queue, ["beside a bad group"])
        async with running_worker(settings):
            await queue.flush_llm_batches()
            assert (await outcome(queue, ids[0])).startswith("echo")
