"""Tests against an independent provider server: it accepts our requests, and we read its replies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from settings import Settings
from tests.support.foreign import foreign_provider
from tests.support.llm import ENDPOINT, PROVIDERS, body, outcome, outcomes, submit
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import JobQueue
from worker.app import composition
from worker.app.composition import Stores
from worker.llm.context import LLMContext

pytestmark = pytest.mark.integration

ANSWER, IN_BATCH = "from another hand", "Mock batch completion"


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    with foreign_provider() as url:
        yield url


def settings_for(url: str, foreign: str, **overrides: Any) -> Settings:
    values: dict[str, Any] = {
        "openai_base_url": f"{foreign}/v1",
        "openai_api_key": "k",
        "anthropic_base_url": foreign,
        "anthropic_api_key": "k",
        "llm_batch_max_age_s": 0.1,
        "llm_batch_cron": "0 0 1 1 *",
        "llm_unconfirmed_wait_s": 0.4,
    }
    return quick_settings(url, **{**values, **overrides})


@asynccontextmanager
async def at_work(settings: Settings) -> AsyncIterator[JobQueue]:
    async with open_queue(settings) as queue, running_worker(settings):
        yield queue


async def urgent(queue: JobQueue, provider: str, text: str) -> str:
    return await queue.submit_llm_request(
        body(provider, text), provider=provider, endpoint=ENDPOINT[provider], urgent=True
    )


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_urgent_requests_are_answered_and_their_errors_are_read(
    private_valkey_url: str, foreign: str, provider: str
) -> None:
    async with at_work(settings_for(private_valkey_url, foreign)) as queue:
        assert await outcome(queue, await urgent(queue, provider, "hello")) == ANSWER
        kind = "invalid_prompt" if provider == "openai" else "invalid_request_error"
        failed = await outcome(queue, await urgent(queue, provider, "please fail"))
        assert failed == f"error {kind}"


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_429_with_retry_after_delays_the_request_until_answered(
    private_valkey_url: str, foreign: str, provider: str
) -> None:
    async with at_work(settings_for(private_valkey_url, foreign)) as queue:
        id_ = await urgent(queue, provider, f"busy {provider}")
        rate = stores_of(queue).keys.llm_rate(provider)

        async def paused() -> bool:
            return bool(await stores_of(queue).client.hexists(rate, "pause"))

        await eventually(paused)
        assert await outcome(queue, id_) == ANSWER
        assert float(await stores_of(queue).client.hget(rate, "limit")) < 64


@pytest.mark.parametrize(
    ("endpoint", "request_body"),
    [
        ("responses", {"model": "m", "input": "hello"}),
        ("embeddings", {"model": "m", "input": "hello"}),
    ],
)
@pytest.mark.parametrize("by_itself", [True, False])
async def test_responses_and_embeddings_work_as_direct_calls_and_in_batches(
    private_valkey_url: str,
    foreign: str,
    endpoint: str,
    request_body: dict[str, Any],
    by_itself: bool,
) -> None:
    async with at_work(settings_for(private_valkey_url, foreign)) as queue:
        id_ = await queue.submit_llm_request(
            request_body, provider="openai", endpoint=endpoint, urgent=by_itself
        )
        answer = await queue.llm_result(id_, timeout_s=20)
    if endpoint == "embeddings":
        assert len(answer["data"][0]["embedding"]) == (2 if by_itself else 3)
    else:
        text = answer["output"][0]["content"][0]["text"]
        assert text == (ANSWER if by_itself else IN_BATCH)


async def test_a_batch_is_uploaded_submitted_polled_read_and_cleaned_up(
    private_valkey_url: str, foreign: str
) -> None:
    settings = settings_for(private_valkey_url, foreign, llm_delete_files="all")
    async with at_work(settings) as queue:
        before = await files(foreign)
        ids = await submit(queue, "openai", *(f"q{n}" for n in range(20)))
        assert await outcomes(queue, ids) == [IN_BATCH] * 20
        shown = await eventually(lambda: ended(queue))
        await eventually(lambda: files_are(foreign, before))
    assert [row["succeeded"] for row in shown] == [20]
    assert shown[0]["usage"]["output"] == 20


async def test_a_submission_of_ours_is_found_in_a_foreign_list_by_its_tag(
    private_valkey_url: str, foreign: str
) -> None:
    settings = settings_for(private_valkey_url, foreign, llm_poll_interval_s=3600)
    async with open_queue(settings) as queue:
        ids = await submit(queue, "openai", "a")
        async with running_worker(settings):
            shown = await eventually(lambda: in_state(queue, "submitted"))
        # The state after a crash between the submission and its record.
        row = {"state": "submitting", "provider_id": ""}
        await stores_of(queue).batches.note(shown["id"], **row)
        await queue.llm.batches.retry(shown["id"])
        settings = settings_for(private_valkey_url, foreign)
        async with running_worker(settings):
            assert await outcomes(queue, ids) == [IN_BATCH]
            (after,) = await eventually(lambda: ended(queue))
    assert (after["provider_id"], after["ambiguous"]) == (shown["provider_id"], 1)


@pytest.mark.parametrize(
    ("how", "kind"), [("failed", "mock_failure"), ("expired", "missing"), ("cancelled", "missing")]
)
async def test_every_request_of_a_failed_batch_gets_an_error(
    private_valkey_url: str,
    foreign: str,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    kind: str,
) -> None:
    build = composition.build_llm_context

    def steered(settings: Settings, stores: Stores) -> LLMContext:
        context = build(settings, stores)
        context.http.headers["X-AIMock-Batch-Outcome"] = how
        return context

    monkeypatch.setattr(composition, "build_llm_context", steered)
    settings = settings_for(private_valkey_url, foreign, llm_item_max_tries=1)
    async with at_work(settings) as queue:
        ids = await submit(queue, "openai", "a", "b")
        assert await outcomes(queue, ids) == [f"error {kind}"] * 2
        await eventually(lambda: ended(queue))


async def test_canceling_reaches_a_foreign_provider(private_valkey_url: str, foreign: str) -> None:
    # The batch ends at its second poll; the cancellation comes before that.
    settings = settings_for(private_valkey_url, foreign, llm_poll_interval_s=3600)
    async with at_work(settings) as queue:
        ids = await submit(queue, "openai", "a", "b")
        shown = await eventually(lambda: in_state(queue, "submitted"))
        assert await queue.llm.batches.cancel(shown["id"])
        await eventually(lambda: in_state(queue, "canceling"))
        await queue.llm.batches.retry(shown["id"])
        assert await outcomes(queue, ids) == ["error canceled"] * 2
    async with httpx.AsyncClient(trust_env=False) as client:
        found = await client.get(f"{foreign}/v1/batches/{shown['provider_id']}")
    assert found.json()["status"] == "cancelled"


async def test_a_messages_endpoint_without_batches_gets_direct_calls(
    private_valkey_url: str, foreign: str
) -> None:
    async with at_work(settings_for(private_valkey_url, foreign)) as queue:
        ids = await submit(queue, "anthropic", "a", "b")
        assert await outcomes(queue, ids) == [ANSWER] * 2
        (shown,) = await eventually(lambda: ended(queue))
    assert (shown["moved"], shown["provider_id"]) == (2, None)


async def files(foreign: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        return len((await client.get(f"{foreign}/v1/files?limit=100")).json()["data"])


async def files_are(foreign: str, count: int) -> bool:
    return await files(foreign) == count


async def in_state(queue: JobQueue, state: str) -> dict[str, Any] | None:
    return next((row for row in await queue.llm.batches.list() if row["state"] == state), None)


async def ended(queue: JobQueue) -> list[dict[str, Any]] | None:
    shown = await queue.llm.batches.list()
    over = bool(shown) and all(row["state"] in {"done", "failed"} for row in shown)
    return shown if over else None
