"""Tests batches that the provider refuses: rejected lines fail, the others are answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support.llm import CREATE, outcomes, settings_for, submit
from tests.support.providers import FakeProvider, fake_provider
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue, open_queue
from worker.app import composition
from worker.llm.context import LLMContext
from worker.llm.grouping import most_parts

pytestmark = pytest.mark.integration

GOOD = 31


@pytest.fixture(scope="module")
def one_fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def fake(one_fake: FakeProvider) -> FakeProvider:
    one_fake.reset()
    return one_fake


async def all_ended(queue: JobQueue) -> list[dict[str, Any]] | None:
    shown = await queue.llm.batches.list(limit=500)
    return shown if all(row["state"] in {"done", "failed"} for row in shown) else None


@pytest.mark.parametrize(
    ("provider", "poison_at"),
    [("openai", "validation"), ("openai", "create"), ("openai", "upload"), ("anthropic", "create")],
)
async def test_an_unnamed_rejected_line_is_found_by_halving_and_fails_alone(
    private_valkey_url: str, fake: FakeProvider, provider: str, poison_at: str
) -> None:
    fake.set(poison_at=poison_at, polls=0)
    settings = settings_for(private_valkey_url, fake)
    texts = [f"q{n}" for n in range(GOOD)]
    texts.insert(11, "please poison")
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, provider, *texts)
        got = await outcomes(queue, ids)
        shown = await eventually(lambda: all_ended(queue))
    assert got.pop(11) == "error invalid_request"
    assert got == [f"echo: q{n}" for n in range(GOOD)]
    # 32 requests are halved five times: two batches per halving, and the original.
    assert len(shown) == 11
    sent = CREATE[provider] if poison_at != "upload" else "POST /v1/files"
    assert fake.calls(sent) == 11
    assert sum(row["failed"] for row in shown) == 1
    assert sum(row["succeeded"] for row in shown) == GOOD
    assert {row["state"] for row in shown if row["split_from"] is None} == {"failed"}


async def test_a_refused_batch_delays_no_other_batch_of_its_group(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(polls=0)
    settings = settings_for(private_valkey_url, fake, llm_batch_max_requests=4)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "please poison", "please poison 2", "b")
        ids += await submit(queue, "openai", *(f"q{n}" for n in range(8)))
        got = await outcomes(queue, ids)
    bad = "error invalid_request"
    assert got == ["echo: a", bad, bad, "echo: b", *(f"echo: q{n}" for n in range(8))]


async def test_after_too_many_splits_the_rest_is_sent_as_direct_calls(
    private_valkey_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.llm.refusals.most_parts", lambda _size: 6)
    fake.set(polls=0)
    settings = settings_for(private_valkey_url, fake)
    texts = [f"{'please poison' if n % 2 else 'good'} {n}" for n in range(16)]
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", *texts)
        got = await outcomes(queue, ids)
        shown = await eventually(lambda: all_ended(queue))
    assert [text.startswith("error") for text in got] == [bool(n % 2) for n in range(16)]
    assert got[0] == "echo: good 0"
    assert len(shown) == 7
    assert fake.calls("POST /v1/chat/completions") == 16


async def test_accepted_lines_of_a_refused_file_use_up_no_try(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(outcome="failed", polls=0)
    settings = settings_for(private_valkey_url, fake, llm_item_max_tries=1)
    async with open_queue(settings) as queue, running_worker(settings):
        # Each file is refused for its first line, so in the end each request fails alone.
        ids = await submit(queue, "openai", "a", "b", "c")
        assert await outcomes(queue, ids) == ["error invalid_request"] * 3
        shown = await eventually(lambda: all_ended(queue))
    assert sorted(row["requests"] for row in shown) == [1, 2, 3]


@pytest.mark.parametrize(
    ("code", "batches"), [("server_error", 2), ("billing_hard_limit_reached", 1)]
)
async def test_a_refusal_of_the_whole_batch_is_not_split(
    private_valkey_url: str, fake: FakeProvider, code: str, batches: int
) -> None:
    fake.set(outcome="failed", failed_code=code, polls=0)
    settings = settings_for(private_valkey_url, fake, llm_item_max_tries=2)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "b", "c")
        assert await outcomes(queue, ids) == [f"error {code}"] * 3
        shown = await eventually(lambda: all_ended(queue))
    # A transient error is retried up to the item's limit.
    assert len(shown) == batches


async def test_the_last_open_line_is_not_rejected_for_the_other_lines(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(polls=1_000_000)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "please poison", "innocent")
        await eventually(lambda: submitted(queue))
        assert await queue.llm.cancel(ids[0])
        fake.set(polls=0)
        assert await outcomes(queue, ids) == ["error canceled", "echo: innocent"]


async def submitted(queue: JobQueue) -> bool:
    return any(row["state"] == "submitted" for row in await queue.llm.batches.list())


async def test_an_unfinished_split_is_continued(
    private_valkey_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.llm.batch_reads.PAGE", 3)
    monkeypatch.setattr("worker.llm.batches._UNSEALED_MS", 300)
    deaths = 0

    def die(point: str) -> None:
        nonlocal deaths
        if point == "batch.splitting" and deaths < 3:
            deaths += 1
            raise RuntimeError("as if the process had ended here")

    build = composition.build_llm_context

    def mortal(*given: Any) -> LLMContext:
        return replace(build(*given), reached=die)

    monkeypatch.setattr(composition, "build_llm_context", mortal)
    fake.set(polls=0)
    settings = settings_for(private_valkey_url, fake, worker_retry_base_s=0.05)
    texts = [f"q{n}" for n in range(GOOD)]
    texts.insert(20, "please poison")
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", *texts)
        got = await outcomes(queue, ids)
        shown = await eventually(lambda: all_ended(queue))
    assert deaths == 3
    assert got.pop(20) == "error invalid_request"
    assert got == [f"echo: q{n}" for n in range(GOOD)]
    assert sum(row["succeeded"] for row in shown) == GOOD


@pytest.mark.parametrize("size", [1, 2, 3, 500, 50_000, 100_000])
def test_the_search_for_rejected_lines_is_logarithmic_in_the_batch(size: int) -> None:
    halvings = (size - 1).bit_length()
    assert 2 * halvings <= most_parts(size) <= max(16 * halvings, 16)
