"""Stored data names queues by their priority, not by their keys: a prefix may change."""

from __future__ import annotations

from typing import Any

import pytest
from arq.worker import func

from cache.encoding import codec
from tests.support.engine import burst, running
from tests.support.queues import queue_of, stores_of
from tests.support.wait import eventually
from worker import Priority, call
from worker.errors import Permanent
from worker.keys import EngineKeys, QueueKeys
from worker.queue.store import job_body

pytestmark = pytest.mark.integration

# Results and heartbeats have the queue's key in arq's own fields; none outlasts a prefix.
ARQS = ("result:", "worker:", "queue:health-check")
LATER_S = 3600


async def fail(ctx: dict[str, Any]) -> None:
    raise Permanent("no")


async def total(ctx: dict[str, Any], numbers: list[int]) -> int:
    return sum(numbers)


async def one(ctx: dict[str, Any]) -> int:
    return 1


READS = {
    b"string": lambda client, key: client.get(key),
    b"hash": lambda client, key: client.hgetall(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"set": lambda client, key: client.smembers(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1),
    b"stream": lambda client, key: client.xrange(key),
}


async def test_no_stored_value_names_a_key(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    after = call("total", priority=Priority.LOW, then=call("one", priority=Priority.HIGH))
    await queue.enqueue("one", delay_s=LATER_S, unique="u", then=after)
    await queue.jobs.gather([call("one", delay_s=LATER_S)], then=after)
    await queue.jobs.schedule("s", call("one", priority=Priority.HIGH), every_s=LATER_S)
    await queue.pause(function="f")
    await queue.send_webhook("https://example.com/", {}, event_type="x")
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    await queue.submit_llm_request(body, provider="openai", endpoint="chat/completions")
    await queue.enqueue("fail", job_id="dead", priority=Priority.LOW)
    async with running(client, prefix, [fail]):
        await eventually(lambda: queue.dead.get("dead"))
    found = {}
    for key in await client.keys(f"{prefix}*"):
        if not key.removeprefix(prefix.encode()).startswith(tuple(map(str.encode, ARQS))):
            found[key] = repr(await READS[await client.type(key)](client, key))
    assert len(found) > 12
    assert [key for key, value in found.items() if prefix in value] == []


@pytest.mark.parametrize("stored", ["low", "PREFIXqueue:low"], ids=["priority", "key"])
async def test_what_follows_keeps_its_priority(client: Any, prefix: str, stored: str) -> None:
    """Development versions of 0.1 stored keys."""
    queue, keys = queue_of(client, prefix), QueueKeys(prefix)
    place = stored.replace("PREFIX", prefix)
    then = {"f": "one", "a": [], "k": {}, "q": place, "id": "next", "delay": 3_600_000}
    options = {"then": {**then, "xs": None, "o": {}}, "g": {"id": "g", "i": 0}}
    body = job_body("one", [], {}, now_ms=1, options=options)
    await stores_of(queue).jobs.put("a", body, priority=Priority.HIGH, delay_ms=0, due_ms=None)
    gather = {"size": 1, "head": codec.encode("x"), "tail": b"\x01", "queue": place}
    await client.hset(keys.gather("g"), mapping={**gather, "job": "joined"})
    async with running(client, prefix, [one]) as worker:
        # The joined one is no job that can be read, and dies in the queue that it was put into.
        letter = await eventually(lambda: queue.dead.get("joined"))
        assert worker.jobs_complete == 1
    assert letter.priority == Priority.LOW
    assert await client.zrange(keys.queue("low"), 0, -1) == [b"next"]


async def test_large_results_join_in_the_queue_of_their_priority(client: Any, prefix: str) -> None:
    queue, keys = queue_of(client, prefix), QueueKeys(prefix)

    async def large(ctx: dict[str, Any]) -> str:
        return "x" * 600_000

    then = call("total", job_id="joined", priority=Priority.CRITICAL)
    await queue.jobs.gather([call("large")], then=then)
    async with running(client, prefix, [func(large, name="large")]):
        # Nobody runs `total`: it is put back, or dies, where it was.
        await eventually(lambda: client.zscore(keys.queue("critical"), "joined"))


async def test_a_dead_letter_goes_back_to_its_priority(client: Any, prefix: str) -> None:
    queue, keys = queue_of(client, prefix), QueueKeys(prefix)
    await queue.enqueue("fail", job_id="a", priority=Priority.LOW)
    await burst(client, prefix, [fail])
    assert await queue.dead.retry("a") == 1
    assert await client.zrange(keys.queue("low"), 0, -1) == [b"a"]


async def test_a_dead_letter_of_another_queue_goes_back_there(client: Any, prefix: str) -> None:
    queue, theirs = queue_of(client, prefix), f"{prefix}theirs"
    await stores_of(queue).jobs.put(
        "a", job_body("fail", [], {}, now_ms=1), priority=Priority.LOW, delay_ms=0, due_ms=None
    )
    await client.rename(QueueKeys(prefix).queue("low"), theirs)
    await burst(client, prefix, [fail], queue_name=theirs)
    assert await queue.dead.retry("a") == 1
    assert await client.zrange(theirs, 0, -1) == [b"a"]


@pytest.mark.parametrize("number", ["0", "0.5", "5", "x", "-1", "inf"])
async def test_an_odd_dead_letter_is_retried_in_the_default_queue(
    client: Any, prefix: str, number: str
) -> None:
    queue, keys = queue_of(client, prefix), QueueKeys(prefix)
    letter = {"body": job_body("one", [], {}, now_ms=1), "queue": number}
    await client.hset(keys.dead_job("a"), mapping=letter)
    await client.zadd(keys.dead, {"a": 1})
    assert await queue.dead.retry("a") == 1
    assert await client.zrange(keys.queue(), 0, -1) == [b"a"]


async def test_a_schedule_runs_in_the_queue_of_its_priority(client: Any, prefix: str) -> None:
    queue, keys = queue_of(client, prefix), EngineKeys(QueueKeys(prefix))
    await queue.jobs.schedule("s", call("other", priority=Priority.CRITICAL), every_s=LATER_S)
    assert b"q" not in codec.decode(await client.hget(keys.schedule_jobs, "s"))
    await client.zadd(keys.schedules, {"s": 1})
    async with running(client, prefix, [one]):
        await eventually(lambda: client.zcard(keys.queues[0]))
