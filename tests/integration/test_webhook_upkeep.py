"""A delivery whose job became a dead letter goes on; other dead letters stay what they are."""

from __future__ import annotations

from typing import Any

from cache.keys import QueueKeys
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import open_queue
from worker.client import JobQueue
from worker.jobs.upkeep import revive_webhooks


class Bare:
    """As much of `Deps` as upkeep asks for."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue


async def bury(queue: JobQueue, job_id: str, name: str, reason: str) -> None:
    """As `pump.lua` leaves a job that is over."""
    keys, client = queue.keys, queue.client
    body = await client.getdel(keys.job(job_id))
    await client.zrem(keys.queue(), job_id)
    await client.zadd(keys.dead, {job_id: 1})
    fields = {"body": body, "reason": reason, "error": "", "tries": 3, "name": name}
    fields |= {"queue": 3, "queue_name": keys.queue(), "died": 1}
    await client.hset(keys.dead_job(job_id), mapping=fields)


async def test_a_poisoned_job_of_an_open_delivery_is_enqueued_again(
    client: Any, prefix: str
) -> None:
    queue = JobQueue(client, keys=QueueKeys(prefix))
    id_ = await queue.send_webhook("https://example.com/", {}, event_type="x")
    other = await queue.enqueue("theirs")
    await bury(queue, f"webhook:{id_}", "<unknown>", "poison")
    await bury(queue, other.id, "theirs", "poison")
    assert await revive_webhooks({"letta_redis": Bare(queue)}) == 1
    assert await client.zscore(queue.keys.queue(), f"webhook:{id_}")
    assert [letter.id for letter in await queue.dead.list()] == [other.id]
    assert await revive_webhooks({"letta_redis": Bare(queue)}) == 0


async def test_workers_revive_by_themselves(private_valkey_url: str) -> None:
    settings = quick_settings(private_valkey_url)
    async with open_queue(settings) as queue:
        id_ = await queue.send_webhook("http://127.0.0.1:1/", {}, event_type="x")
        await bury(queue, f"webhook:{id_}", "<unknown>", "poison")
        async with running_worker(settings):

            async def tried() -> bool:
                attempts = (await queue.delivery(id_)).attempts
                return "connect" in [attempt.error for attempt in attempts]

            assert await eventually(tried, deadline_s=25)
