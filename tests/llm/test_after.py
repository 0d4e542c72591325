"""Tests the jobs after an end: webhooks of requests, and deletion of files at the provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.llm import body, outcome, outcomes, settings_for, submit
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import InvalidWebhookURL, JobQueue

pytestmark = pytest.mark.integration

HOOK, OTHER = "http://127.0.0.1:9/hook", "http://127.0.0.1:9/other"


@pytest.fixture(scope="module")
def one_fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def fake(one_fake: FakeProvider) -> FakeProvider:
    one_fake.reset()
    return one_fake


async def webhooks_sent(queue: JobQueue) -> list[tuple[str, dict[str, Any]]]:
    """URL and payload of every webhook that was sent so far."""
    found = []
    async for key in stores_of(queue).client.scan_iter(stores_of(queue).keys.webhook("*")):
        if await stores_of(queue).client.type(key) == b"hash":
            url, data = await stores_of(queue).client.hmget(key, "url", "body")
            found.append((url.decode(), json.loads(data)))
    return found


async def webhooks_if_sent(queue: JobQueue, count: int) -> list[tuple[str, dict[str, Any]]] | None:
    found = await webhooks_sent(queue)
    return found if len(found) == count else None


async def test_each_caller_of_a_shared_request_gets_one_webhook(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        (id_,) = await submit(queue, "openai", "same", webhook_url=HOOK)
        (again,) = await submit(queue, "openai", "same", webhook_url=HOOK)
        (other,) = await submit(queue, "openai", "same", webhook_url=OTHER)
        await submit(queue, "openai", "silent")
        async with running_worker(settings):
            assert await outcome(queue, id_) == "echo: same"
            found = await eventually(lambda: webhooks_if_sent(queue, 3))
        assert not await stores_of(queue).client.exists(stores_of(queue).keys.llm_callback(id_))
    whom = sorted((url, payload["id"]) for url, payload in found)
    assert whom == sorted([(HOOK, id_), (HOOK, again), (OTHER, other)])
    for _, payload in found:
        assert (payload["status"], payload["error"]) == ("succeeded", None)
        assert payload["response"]["choices"][0]["message"]["content"] == "echo: same"


async def test_an_error_and_the_answer_of_its_retry_send_a_webhook_each(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(outcome="failed", polls=0)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        (id_,) = await submit(queue, "openai", "a", webhook_url=HOOK)
        assert await outcome(queue, id_) == "error invalid_request"
        ((_, payload),) = await eventually(lambda: webhooks_if_sent(queue, 1))
        assert payload["error"] == {"kind": "invalid_request", "message": "line 1 is not JSON"}
        assert (payload["status"], payload["response"]) == ("failed", None)
        assert await stores_of(queue).client.pttl(stores_of(queue).keys.llm_callback(id_)) > 0
        fake.set(outcome="completed")
        (shown,) = await queue.llm.batches.list()
        assert await queue.llm.batches.retry(shown["id"]) == 1
        assert await outcome(queue, id_) == "echo: a"
        found = await eventually(lambda: webhooks_if_sent(queue, 2))
    assert sorted(payload["status"] for _, payload in found) == ["failed", "succeeded"]


async def test_an_urgent_request_and_a_cached_answer_send_webhooks(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_cache_ttl_s=60)
    async with open_queue(settings) as queue, running_worker(settings):
        (id_,) = await submit(queue, "openai", "again")
        await outcome(queue, id_)
        (again,) = await submit(queue, "openai", "again", webhook_url=HOOK)
        assert again.startswith(f"{id_}.")
        await queue.submit_llm_request(
            body("openai", "now"),
            provider="openai",
            endpoint="chat/completions",
            urgent=True,
            webhook_url=OTHER,
        )
        found = dict(await eventually(lambda: webhooks_if_sent(queue, 2)))
    texts = {url: row["response"]["choices"][0]["message"]["content"] for url, row in found.items()}
    assert texts == {HOOK: "echo: again", OTHER: "echo: now"}


async def test_an_answer_too_large_for_a_webhook_is_fetched_by_its_id(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake, webhook_max_body_bytes=1024)
    async with open_queue(settings) as queue, running_worker(settings):
        (id_,) = await submit(queue, "openai", "long " * 500, webhook_url=HOOK)
        ((_, payload),) = await eventually(lambda: webhooks_if_sent(queue, 1))
    assert payload == {"id": id_, "status": "succeeded", "response": None, "error": None}


async def test_an_invalid_webhook_url_is_refused_and_nothing_is_stored(
    valkey_url: str, private_valkey_url: str, fake: FakeProvider
) -> None:
    async with open_queue(settings_for(private_valkey_url, fake)) as queue:
        before = await stores_of(queue).client.dbsize()
        with pytest.raises(InvalidWebhookURL):
            await submit(queue, "openai", "a", webhook_url="ftp://example.org")
        assert await stores_of(queue).client.dbsize() == before


async def ended(queue: JobQueue) -> bool:
    shown = await queue.llm.batches.list()
    return bool(shown) and all(row["state"] in {"done", "failed"} for row in shown)


@pytest.mark.parametrize(("choice", "kept"), [("none", 3), ("input", 2), ("all", 0)])
async def test_an_ended_batchs_files_are_deleted_by_the_setting(
    private_valkey_url: str, fake: FakeProvider, choice: str, kept: int
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_delete_files=choice)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "please fail")
        assert await outcomes(queue, ids) == ["echo: a", "error invalid_prompt"]
        await eventually(lambda: ended(queue))
        await eventually(lambda: files_are(fake, kept))
    assert fake.calls("GET /v1/files") == 0


async def files_are(fake: FakeProvider, count: int) -> bool:
    return len(fake.report()["files"]) == count


@pytest.mark.parametrize("fault", ["drop", "cancelled"])
async def test_a_file_of_a_lost_upload_is_found_by_name_and_deleted(
    private_valkey_url: str, fake: FakeProvider, fault: str
) -> None:
    fake.set(list_limit=1)
    fake.fault("POST", "/v1/files", "drop")
    settings = settings_for(private_valkey_url, fake, llm_poll_interval_s=0.05)
    async with open_queue(settings) as queue:
        ids = await submit(queue, "openai", "a")
        if fault == "cancelled":
            # The reply of its only upload was lost, and then all callers canceled.
            fake.fault("POST", "/v1/files", "status", status=503, times=1000)
        async with running_worker(settings):
            if fault == "cancelled":
                await eventually(lambda: files_are(fake, 1))
                assert await queue.llm.cancel(ids[0])
            assert await outcome(queue, ids[0]) in {"echo: a", "error canceled"}
            await eventually(lambda: ended(queue))
            # Result files stay, if there are any.
            await eventually(lambda: files_are(fake, 0 if fault == "cancelled" else 1))
    assert fake.calls("GET /v1/files") >= 1


async def test_an_unavailable_provider_delays_the_deletion_not_the_answers(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.fault("DELETE", "/v1/files", "status", status=503, times=2)
    settings = settings_for(private_valkey_url, fake, worker_retry_base_s=0.05)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a")
        assert await outcomes(queue, ids) == ["echo: a"]
        await eventually(lambda: ended(queue))
        await eventually(lambda: files_are(fake, 1))
    assert fake.calls("DELETE /v1/files/{id}") == 3
