"""Tests LLM requests with a real worker and an OpenAI-compatible server in its own process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.support.queues import open_queue, stores_of
from tests.support.servers import raw_server
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import (
    InvalidArgument,
    JobQueue,
    NotFound,
    PayloadTooLarge,
    RequestFailed,
    ResultTimeout,
    UnknownProvider,
)
from worker.demo.serving import running

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"


@pytest.fixture
def provider() -> Iterator[str]:
    with running("worker.demo.openai_server") as url:
        yield url


def body(text: str, model: str = "m") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


async def submit(queue: JobQueue, text: str, **more: Any) -> str:
    return await queue.submit_llm_request(body(text), provider="openai", endpoint=CHAT, **more)


async def text_of(queue: JobQueue, request_id: str) -> str:
    answer = await queue.llm_result(request_id, timeout_s=15)
    return str(answer["choices"][0]["message"]["content"])


async def calls(provider: str) -> dict[str, int]:
    async with httpx.AsyncClient(trust_env=False) as client:
        found: dict[str, int] = (await client.get(f"{provider}/calls")).json()
    return found


async def test_single_requests_are_batched_by_size_and_get_their_answers(
    private_valkey_url: str, provider: str
) -> None:
    settings = quick_settings(
        private_valkey_url, openai_base_url=f"{provider}/v1", llm_batch_max_requests=10
    )
    async with open_queue(settings) as queue, running_worker(settings):
        ids = [await submit(queue, f"question {n}") for n in range(20)]
        texts = await asyncio.gather(*(text_of(queue, id_) for id_ in ids))
    assert texts == [f"echo: question {n}" for n in range(20)]
    # One batch or two: the first flush may find all twenty waiting, and it seals ten at a time.
    assert await calls(provider) == {"files": 2, "batches": 2}


async def test_an_error_of_one_item_affects_no_other(
    private_valkey_url: str, provider: str
) -> None:
    settings = quick_settings(
        private_valkey_url, openai_base_url=f"{provider}/v1", llm_batch_max_requests=3
    )
    async with open_queue(settings) as queue, running_worker(settings):
        good, bad, other = [await submit(queue, text) for text in ("a", "please fail", "c")]
        assert await text_of(queue, good) == "echo: a"
        assert await text_of(queue, other) == "echo: c"
        with pytest.raises(RequestFailed) as caught:
            await queue.llm_result(bad, timeout_s=15)
    assert caught.value.kind == "invalid_prompt"
    assert caught.value.message == "asked to fail"


@pytest.mark.parametrize("how", ["cron", "age", "hand"])
async def test_a_batch_that_does_not_fill_is_flushed(
    private_valkey_url: str, provider: str, how: str
) -> None:
    settings = quick_settings(
        private_valkey_url,
        openai_base_url=f"{provider}/v1",
        llm_batch_cron="* * * * * *" if how == "cron" else "0 0 1 1 *",
        llm_batch_max_age_s=0.2 if how == "age" else 3600,
    )
    async with open_queue(settings) as queue, running_worker(settings):
        id_ = await submit(queue, "alone")
        if how == "hand":
            job = await queue.flush_llm_batches()
            assert await job.result(timeout_s=10) == 1
        assert await text_of(queue, id_) == "echo: alone"


async def test_urgent_and_nearly_due_requests_are_direct_calls(
    private_valkey_url: str, provider: str
) -> None:
    settings = quick_settings(
        private_valkey_url, openai_base_url=f"{provider}/v1", llm_batch_cron="0 0 1 1 *"
    )
    async with open_queue(settings) as queue, running_worker(settings):
        soon = datetime.now(UTC) + timedelta(seconds=30)
        ids = [await submit(queue, "now", urgent=True), await submit(queue, "soon", deadline=soon)]
        assert [await text_of(queue, id_) for id_ in ids] == ["echo: now", "echo: soon"]
        late = datetime.now(UTC) - timedelta(seconds=1)
        with pytest.raises(RequestFailed, match="deadline_exceeded"):
            await queue.llm_result(await submit(queue, "late", deadline=late), timeout_s=10)
    assert await calls(provider) == {"chat": 2}


async def test_an_endpoint_without_batches_gets_direct_calls(private_valkey_url: str) -> None:
    with running("worker.demo.openai_server", ["--no-batches"]) as provider:
        settings = quick_settings(
            private_valkey_url, openai_base_url=f"{provider}/v1", llm_batch_max_requests=4
        )
        async with open_queue(settings) as queue, running_worker(settings):
            ids = [await submit(queue, f"q{n}") for n in range(4)]
            texts = await asyncio.gather(*(text_of(queue, id_) for id_ in ids))
        assert texts == [f"echo: q{n}" for n in range(4)]
        assert await calls(provider) == {"chat": 4}


async def test_an_unavailable_provider_is_retried(
    private_valkey_url: str, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.llm.direct._OUTAGE_BASE_S", 0.01)
    attempts = asyncio.Event()

    async def refuse(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        attempts.set()

    async with raw_server(refuse) as port:
        away = quick_settings(
            private_valkey_url,
            openai_base_url=f"http://127.0.0.1:{port}/v1",
            llm_batch_max_requests=1,
        )
        async with open_queue(away) as queue, running_worker(away):
            id_ = await submit(queue, "patience")
            await asyncio.wait_for(attempts.wait(), 10)
    back = quick_settings(private_valkey_url, openai_base_url=f"{provider}/v1")
    async with open_queue(back) as queue, running_worker(back):
        assert await text_of(queue, id_) == "echo: patience"


async def test_equal_requests_in_flight_share_one_line(
    private_valkey_url: str, provider: str
) -> None:
    settings = quick_settings(private_valkey_url, openai_base_url=f"{provider}/v1")
    async with open_queue(settings) as queue:
        first = await submit(queue, "same")
        second = await submit(queue, "same")
        assert shared_id(second) == first
        assert shared_id(await submit(queue, "same", dedupe=False)) != first
        async with running_worker(settings):
            await queue.flush_llm_batches()
            assert await text_of(queue, first) == "echo: same"
            assert await text_of(queue, second) == "echo: same"
            assert shared_id(await submit(queue, "same")) != first


def shared_id(id_: str) -> str:
    return id_.partition(".")[0]


async def test_a_submission_that_was_not_recorded_is_not_repeated(
    private_valkey_url: str, provider: str
) -> None:
    settings = quick_settings(
        private_valkey_url, openai_base_url=f"{provider}/v1", llm_batch_max_requests=2
    )
    async with open_queue(settings) as queue:
        ids = [await submit(queue, f"q{n}") for n in range(2)]
        async with running_worker(settings):
            for id_ in ids:
                await text_of(queue, id_)
        # The state after a crash between POST /batches and its record.
        (key,) = [
            k async for k in stores_of(queue).client.scan_iter(stores_of(queue).keys.llm_batch("*"))
        ]
        batch_id = key.decode().rpartition(":")[2]
        await stores_of(queue).client.hset(key, mapping={"state": "submitting", "provider_id": ""})
        await stores_of(queue).client.persist(stores_of(queue).keys.llm_items(batch_id))
        job = await queue.enqueue("run_llm_batch", batch_id)
        async with running_worker(settings):
            assert await job.result(timeout_s=10) == "done"
    assert (await calls(provider))["batches"] == 1


async def test_an_unanswered_request_times_out_and_can_be_read_later(valkey_url: str) -> None:
    async with open_queue(quick_settings(valkey_url)) as queue:
        id_ = await submit(queue, "nobody works here")
        with pytest.raises(ResultTimeout):
            await queue.llm_result(id_, timeout_s=0.05)
        with pytest.raises(NotFound):
            await queue.llm_result("req_unknown", timeout_s=10)


async def test_bad_requests_are_refused_at_the_call(private_valkey_url: str) -> None:
    async with open_queue(quick_settings(private_valkey_url, llm_max_body_bytes=1024)) as queue:
        before = await stores_of(queue).client.dbsize()

        async def call(
            data: Any, provider: str = "openai", endpoint: str = CHAT, **more: Any
        ) -> None:
            await queue.submit_llm_request(data, provider=provider, endpoint=endpoint, **more)

        with pytest.raises(UnknownProvider, match="openai"):
            await call(body("x"), provider="nobody")
        with pytest.raises(InvalidArgument, match="endpoint"):
            await call(body("x"), endpoint="/v1/images")
        shapes: list[Any] = [[], {}, {"model": 1, "messages": [1]}, {"model": "m"}]
        for wrong in shapes:
            with pytest.raises(InvalidArgument):
                await call(wrong)
        with pytest.raises(InvalidArgument, match="stream"):
            await call({**body("x"), "stream": True})
        with pytest.raises(InvalidArgument, match="JSON"):
            await call({**body("x"), "n": object()})
        with pytest.raises(PayloadTooLarge, match="LETTA_LLM_MAX_BODY_BYTES"):
            await call(body("x" * 1024))
        with pytest.raises(InvalidArgument, match="time zone"):
            await call(body("x"), deadline=datetime(2030, 1, 1))  # noqa: DTZ001
        assert await stores_of(queue).client.dbsize() == before


async def test_only_answers_with_a_ttl_are_left(private_valkey_url: str, provider: str) -> None:
    settings = quick_settings(
        private_valkey_url,
        openai_base_url=f"{provider}/v1",
        llm_batch_max_requests=3,
        llm_batch_cron="0 0 1 1 *",
        worker_keep_result_s=1,
    )
    async with open_queue(settings) as queue, running_worker(settings):
        ids = [await submit(queue, f"q{n}") for n in range(3)]
        for id_ in ids:
            await text_of(queue, id_)

        async def all_bounded() -> bool:
            keys = [
                key
                async for key in stores_of(queue).client.scan_iter(
                    stores_of(queue).keys.prefix + "llm:*"
                )
            ]
            return all([await stores_of(queue).client.pttl(key) != -1 for key in keys])

        await eventually(all_bounded)
