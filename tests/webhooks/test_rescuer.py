"""Tests that dead letters of open deliveries are retried, and other dead letters are not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tests.support.options import endpoint_limits
from tests.support.queues import open_queue, queue_of, stores_of
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker.client import JobQueue
from worker.webhooks.attempts import ClaimedDelivery, Throttled
from worker.webhooks.context import WebhookContext
from worker.webhooks.rescuer import rescue_webhooks

pytestmark = pytest.mark.integration


def context_of(queue: JobQueue) -> dict[str, Any]:
    """The rescuer's context; it sends nothing."""
    stores, unused = stores_of(queue), cast("Any", None)
    context = WebhookContext(
        attempts=stores.attempts,
        deliveries=stores.deliveries,
        jobs=stores.jobs,
        encoder=stores.encoder,
        dead=queue.dead,
        http=unused,
        secrets=stores.secrets,
        options=unused,
    )
    ctx: dict[str, Any] = {}
    context.put_into(ctx)
    return ctx


async def bury(queue: JobQueue, job_id: str, name: str, reason: str) -> None:
    """Leave a job as `poll.lua` does at its end."""
    stores = stores_of(queue)
    keys, client = stores.keys, stores.client
    body = await client.getdel(keys.job(job_id))
    await client.zrem(keys.queue(), job_id)
    await client.zadd(keys.dead, {job_id: 1})
    fields = {"body": body, "reason": reason, "error": "", "tries": 3, "name": name}
    fields |= {"queue": 3, "died": 1}
    await client.hset(keys.dead_job(job_id), mapping=fields)


async def test_a_poisoned_job_of_an_open_delivery_is_enqueued_again(
    client: Any, prefix: str
) -> None:
    queue = queue_of(client, prefix)
    id_ = await queue.send_webhook("https://example.com/", {}, event_type="x")
    other = await queue.enqueue("theirs")
    await bury(queue, f"webhook:{id_}", "<unknown>", "poison")
    await bury(queue, other.id, "theirs", "poison")
    assert await rescue_webhooks(context_of(queue)) == 1
    assert await client.zscore(stores_of(queue).keys.queue(), f"webhook:{id_}")
    assert [letter.id for letter in await queue.dead.list()] == [other.id]
    assert await rescue_webhooks(context_of(queue)) == 0


async def test_workers_run_the_webhook_rescuer_by_cron(private_valkey_url: str) -> None:
    settings = quick_settings(private_valkey_url)
    async with open_queue(settings) as queue:
        id_ = await queue.send_webhook("http://127.0.0.1:1/", {}, event_type="x")
        await bury(queue, f"webhook:{id_}", "<unknown>", "poison")
        async with running_worker(settings):

            async def tried() -> bool:
                attempts = (await queue.delivery(id_)).attempts
                return "connect" in [attempt.error for attempt in attempts]

            assert await eventually(tried, deadline_s=25)


@pytest.mark.parametrize("how", ["aborted", "purged", "deleted"])
async def test_a_delivery_whose_job_was_removed_ends_as_dead(
    client: Any, prefix: str, how: str
) -> None:
    queue = queue_of(client, prefix)
    id_ = await queue.send_webhook(
        "https://example.com/", {}, event_type="x", ordering_key="k", on_end="note"
    )
    behind = await queue.send_webhook("https://example.com/", {}, event_type="x", ordering_key="k")
    job_id = f"webhook:{id_}"
    if how == "purged":
        await bury(queue, job_id, "deliver_webhook", "poison")
        assert await queue.dead.purge(job_id) == 1
    else:
        # An abort removes a job like a deletion does (and leaves an abort entry).
        await client.zrem(stores_of(queue).keys.queue(), job_id)
        await client.delete(stores_of(queue).keys.job(job_id))
    assert await stores_of(queue).attempts.end_jobless(seen_s=0, most=10) == (2, [id_])
    shown = await queue.delivery(id_)
    assert (shown.state, shown.error, shown.attempt_count) == ("dead", "job_removed", 0)
    assert await client.pttl(stores_of(queue).keys.webhook(id_)) > 0
    # It is reported, blocks no other delivery, and can be replayed.
    assert await client.zscore(stores_of(queue).keys.queue(), f"webhook-end:0:{id_}")
    assert isinstance(
        await stores_of(queue).attempts.begin(
            behind, datetime.now(UTC), endpoint_limits(), max_attempts=10
        ),
        ClaimedDelivery,
    )
    await queue.webhooks.replay(id_)
    assert (await queue.delivery(id_)).state == "pending"
    assert await stores_of(queue).attempts.end_jobless(seen_s=0, most=10) == (2, [])


async def test_a_delivery_whose_job_is_a_dead_letter_is_not_ended(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    id_ = await queue.send_webhook("https://example.com/", {}, event_type="x")
    await bury(queue, f"webhook:{id_}", "deliver_webhook", "poison")
    assert await stores_of(queue).attempts.end_jobless(seen_s=0, most=10) == (1, [])
    # A checked delivery is not checked again at once, and an ended one never.
    assert await stores_of(queue).attempts.end_jobless(seen_s=60, most=10) == (0, [])
    assert (await queue.delivery(id_)).state == "pending"


async def test_the_slot_of_a_jobless_delivery_is_freed(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    limits = endpoint_limits(concurrency=1)
    ids = [
        await queue.send_webhook("https://example.com/", {}, event_type="x", webhook_id=f"m{n}")
        for n in range(2)
    ]
    now = datetime.now(UTC)
    assert isinstance(
        await stores_of(queue).attempts.begin(ids[0], now, limits, max_attempts=10), ClaimedDelivery
    )
    assert isinstance(
        await stores_of(queue).attempts.begin(ids[1], now, limits, max_attempts=10), Throttled
    )
    await client.delete(stores_of(queue).keys.job(f"webhook:{ids[0]}"))
    assert await stores_of(queue).attempts.end_jobless(seen_s=0, most=10) == (2, [ids[0]])
    assert isinstance(
        await stores_of(queue).attempts.begin(ids[1], now, limits, max_attempts=10), ClaimedDelivery
    )


async def test_an_aborted_webhook_is_never_sent_and_ends(private_valkey_url: str) -> None:
    settings = quick_settings(private_valkey_url)
    async with open_queue(settings) as queue, running_worker(settings):
        id_ = await queue.send_webhook("http://127.0.0.1:1/", {}, event_type="x", delay_s=3600)
        assert await queue.jobs.get(f"webhook:{id_}").abort()

        async def ended() -> bool:
            await stores_of(queue).attempts.end_jobless(seen_s=0, most=10)
            return (await queue.delivery(id_)).ended_at is not None

        assert await eventually(ended)
        shown = await queue.delivery(id_)
    assert (shown.state, shown.error, shown.attempts) == ("dead", "job_removed", ())
