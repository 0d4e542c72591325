"""Tests states of providers that are not ours to choose: late files, other words, no room, storages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.llm import outcomes, settings_for, submit
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue
from worker.llm.answers import Answer
from worker.llm.providers.statuses import batch_status, is_file_unready

pytestmark = pytest.mark.integration

CREATE, SINGLE, UPLOAD = "POST /v1/batches", "POST /v1/chat/completions", "POST /v1/files"


@pytest.fixture(scope="module")
def one_fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def fake(one_fake: FakeProvider) -> FakeProvider:
    one_fake.reset()
    one_fake.set(polls=0)
    return one_fake


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.llm.direct._OUTAGE_BASE_S", 0.02)


async def shown(queue: JobQueue) -> list[dict[str, Any]] | None:
    rows = await queue.llm.batches.list()
    return rows if all(row["state"] in {"done", "failed"} for row in rows) else None


@pytest.mark.parametrize("how", ["status", "400", "404"])
async def test_a_file_that_is_not_ready_is_waited_for(
    private_valkey_url: str, fake: FakeProvider, how: str
) -> None:
    fake.set(file_ready_s=0.6, unready=how)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "b")
        assert await outcomes(queue, ids) == ["echo: a", "echo: b"]
    assert (fake.calls(UPLOAD), fake.calls(SINGLE)) == (1, 0)
    assert len(fake.report()["batches"]) == 1


async def test_a_file_that_is_never_ready_fails_without_direct_calls(
    private_valkey_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.llm.sending.READY_S", 0.2)
    fake.set(file_ready_s=1000, unready="404")
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "b")
        assert await outcomes(queue, ids) == ["error input_file_not_found"] * 2
    assert (fake.calls(UPLOAD), fake.calls(SINGLE)) == (1, 0)


async def test_a_batch_without_room_waits_and_costs_no_try(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(no_room=2)
    settings = settings_for(private_valkey_url, fake, llm_item_max_tries=1)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "b")
        assert await outcomes(queue, ids) == ["echo: a", "echo: b"]
        (row,) = await eventually(lambda: shown(queue))
    assert (row["state"], row["error"]) == ("done", None)
    assert (fake.calls(UPLOAD), fake.calls(CREATE)) == (1, 3)


async def test_a_batch_that_often_finds_no_room_is_halved(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(no_room=3)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "b")
        assert await outcomes(queue, ids) == ["echo: a", "echo: b"]
        rows = await eventually(lambda: shown(queue))
    assert sorted(row["requests"] for row in rows) == [1, 1, 2]


async def test_a_request_that_left_a_waiting_batch_is_not_bought_with_it(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(no_room=10_000)
    settings = settings_for(private_valkey_url, fake, llm_poll_interval_s=0.3)

    async def waits(queue: JobQueue) -> str | None:
        rows = await queue.llm.batches.list()
        return next((r["id"] for r in rows if "token limit" in (r["error"] or "")), None)

    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "b")
        await eventually(lambda: waits(queue))
        await stores_of(queue).requests.answer(ids[0], Answer(body={"choices": [1]}))
        fake.set(no_room=0)
        assert (await outcomes(queue, ids[1:])) == ["echo: b"]
    sent = fake.report()["batches"]
    assert [len(lines) for lines in sent.values()][-1] == 1


async def test_results_in_a_storage_are_fetched_without_the_key(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(storage=fake.openai_url.replace("127.0.0.1", "localhost").replace("/v1", "/storage"))
    settings = settings_for(private_valkey_url, fake, llm_allow_cidrs="127.0.0.0/8,::1/128")
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", "please fail")
        assert await outcomes(queue, ids) == ["echo: a", "error invalid_prompt"]


async def test_results_in_a_forbidden_storage_wait_until_it_is_allowed(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(storage="http://169.254.169.254/latest")
    settings = settings_for(private_valkey_url, fake)

    async def waits(queue: JobQueue) -> bool:
        (row,) = await queue.llm.batches.list()
        return "169.254.169.254" in (row["error"] or "") and "LLM_ALLOW_CIDRS" in row["error"]

    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a")
        await eventually(lambda: submitted(queue))
        await eventually(lambda: waits(queue))
        fake.set(storage="")
        assert await outcomes(queue, ids) == ["echo: a"]


async def submitted(queue: JobQueue) -> bool:
    return bool(await queue.llm.batches.list())


async def test_results_that_appear_late_are_not_bought_again(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(results_late_s=0.5)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a")
        assert await outcomes(queue, ids) == ["echo: a"]
    assert fake.calls(CREATE) == 1


@pytest.mark.parametrize("fault", ["unready", "late results", "no provider", "gone"])
async def test_a_deadline_holds_in_every_state(
    private_valkey_url: str, fake: FakeProvider, fault: str
) -> None:
    if fault == "unready":
        fake.set(file_ready_s=1000, unready="400")
    elif fault == "late results":
        fake.set(results_late_s=1000)
    elif fault == "no provider":
        fake.fault("POST", UPLOAD.removeprefix("POST "), "status", status=503, times=10_000)
    else:
        fake.fault("POST", CREATE.removeprefix("POST "), "lose", times=10_000)
    settings = settings_for(
        private_valkey_url, fake, llm_deadline_margin_s=60, llm_unconfirmed_wait_s=600
    )
    async with open_queue(settings) as queue, running_worker(settings):
        deadline = datetime.now(UTC) + timedelta(seconds=61.5)
        ids = await submit(queue, "openai", "a", deadline=deadline)
        assert await outcomes(queue, ids) == ["echo: a"]
    assert datetime.now(UTC) < deadline
    assert fake.calls(SINGLE) == 1


async def test_a_direct_call_that_hangs_ends_at_its_deadline(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(latency_s=30)
    settings = settings_for(private_valkey_url, fake)
    start = datetime.now(UTC)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", deadline=start + timedelta(seconds=1.5))
        assert await outcomes(queue, ids) == ["error deadline_exceeded"]
    assert datetime.now(UTC) < start + timedelta(seconds=29)  # the provider takes 30 s


async def test_an_open_batch_shows_why_it_does_not_move(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    overloaded = {"error": {"message": "no room\nfor files", "code": "overloaded"}}
    fake.fault("POST", "/v1/files", "status", status=503, times=2, body=overloaded)
    fake.set(polls=1_000_000)
    settings = settings_for(private_valkey_url, fake)

    async def row(queue: JobQueue, **wanted: Any) -> dict[str, Any] | None:
        rows = await queue.llm.batches.list()
        return next((r for r in rows if all(r[k] == v for k, v in wanted.items())), None)

    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a")
        error = "the provider answered 503: overloaded: no room for files"
        held = await eventually(lambda: row(queue, state="uploading", error=error))
        assert datetime.fromisoformat(held["error_at"]) <= datetime.now(UTC)
        moved = await eventually(lambda: row(queue, provider_status="in_progress"))
        assert (moved["error"], moved["error_at"]) == (None, None)
        fake.set(polls=0)
        assert await outcomes(queue, ids) == ["echo: a"]


STATUSES = {
    "completed": (True, False),
    "COMPLETED": (True, False),
    " Completed ": (True, False),
    "canceled": (True, False),
    "SUCCESS": (True, False),
    "JOB_STATE_SUCCEEDED": (True, False),
    "timeout_exceeded": (True, False),
    "JOB_STATE_PARTIALLY_SUCCEEDED": (True, False),
    "PartiallyCompleted": (True, False),
    "Stopping": (False, False),
    "FAILED": (True, True),
    "errored": (True, True),
    "in_progress": (False, False),
    "In Progress": (False, False),
    "inProgress": (False, False),
    "cancelling": (False, False),
    "warming_up": (False, False),
    "": (False, False),
}


@pytest.mark.parametrize("status", STATUSES)
def test_a_state_is_read_in_every_spelling(status: str) -> None:
    assert batch_status({"status": status}, "status")[1:] == STATUSES[status]


@pytest.mark.parametrize(
    ("row", "ends"),
    [
        ({"status": "archived", "completed_at": 5}, (True, False)),
        ({"status": "broken", "failed_at": 5}, (True, True)),
        ({"status": "paused_by_admin", "completed_at": None}, (False, False)),
        ({"status": "in_progress", "completed_at": 5}, (False, False)),
        ({"status": ["x"]}, (False, False)),
        ({"status": "resting", "completed_at": "2026-01-02T03:04:05Z"}, (True, False)),
        ({"status": "resting", "ended_at": "Fri, 2 Jan 2026", "failed_at": "null"}, (True, False)),
        ({"status": "resting", "completed_at": 1767322800.5}, (True, False)),
        ({"status": "resting", "completed_at": "0001-01-01T00:00:00Z"}, (False, False)),
        ({"status": "resting", "completed_at": "1970-01-01T00:00:00Z"}, (False, False)),
        ({"status": "resting", "completed_at": "0", "expired_at": -1}, (False, False)),
    ],
)
def test_an_unknown_state_has_ended_when_its_time_says_so(row: Any, ends: Any) -> None:
    assert batch_status(row, "status")[1:] == ends


@pytest.mark.parametrize(
    ("row", "words", "unready"),
    [
        ({"status": "pending"}, "x", True),
        ({"status": "Running"}, "x", True),
        ({"status": "processed"}, "line 3 is not JSON", False),
        ({"status": "processed"}, "the input file is not found", True),
        ({"status": "error"}, "the file is still pending", False),
        ({}, "No such File object: file-1", True),
        (None, "Input file does not exist", True),
        (None, "input_file_not_found", True),
        (None, "fileNotFound", True),
        ({"status": "processed"}, "the file is being validated", True),
        (None, "the file must be .jsonl", False),
        (None, "a line is not found to our taste", False),
    ],
)
def test_a_refusal_is_the_file_s_fault_only_while_it_is_unready(
    row: Any, words: str, unready: bool
) -> None:
    assert is_file_unready(row, words) is unready
