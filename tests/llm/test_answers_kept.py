"""Tests that a paid answer is kept whatever its form, and that a success without one is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.llm import (
    CREATE,
    ENDPOINT,
    PROVIDERS,
    body,
    outcome,
    outcomes,
    settings_for,
    submit,
)
from tests.support.providers import FakeProvider, fake_provider
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue, NotFound, RequestFailed, open_queue
from worker.llm.answers import Answer, checked

pytestmark = pytest.mark.integration

DIRECT = {"openai": "/v1/chat/completions", "anthropic": "/anthropic/v1/messages"}


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


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_an_unreadable_line_ends_malformed_with_its_text_kept(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, provider, "a", "please garble", "b")
        assert await outcomes(queue, ids) == ["echo: a", "error malformed", "echo: b"]
        (row,) = await eventually(lambda: ended(queue))
        assert (row["succeeded"], row["failed"], row["moved"]) == (2, 1, 0)
        came = await queue.llm.came(ids[1])
        assert b"echo: please garble" in came
        assert came.endswith(b'"score": -nan}')
        with pytest.raises(NotFound):
            await queue.llm.came(ids[0])
        assert fake.calls(CREATE[provider]) == 1
        # The operator may buy it again.
        assert await queue.llm.batches.retry(row["id"]) == 1


async def ended(queue: JobQueue) -> list[dict[str, Any]] | None:
    rows = await queue.llm.batches.list()
    return rows if all(row["state"] in {"done", "failed"} for row in rows) else None


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "reply",
    [
        {"body": None},
        {"body": {}},
        {"body": []},
        {"body": {"detail": "loading the model"}},
        {"body": {"choices": [None], "content": [None]}},
        {"body": {"error": {"code": 502, "message": "upstream"}}},
        {"text": ""},
        {"text": "<html>welcome</html>"},
    ],
)
async def test_a_success_without_an_answer_is_tried_again(
    private_valkey_url: str, fake: FakeProvider, provider: str, reply: dict[str, Any]
) -> None:
    fake.fault("POST", DIRECT[provider], "status", status=200, **reply)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        assert await outcome(queue, await urgent(queue, provider)) == "echo: a"


async def urgent(queue: JobQueue, provider: str) -> str:
    endpoint = ENDPOINT[provider]
    return await queue.submit_llm_request(
        body(provider, "a"), provider=provider, endpoint=endpoint, urgent=True
    )


async def test_a_success_without_an_answer_ends_as_a_named_error(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.fault("POST", DIRECT["openai"], "status", status=200, text="<html>hi</html>", times=9)
    settings = settings_for(private_valkey_url, fake, llm_item_max_tries=2)
    async with open_queue(settings) as queue, running_worker(settings):
        id_ = await urgent(queue, "openai")
        with pytest.raises(RequestFailed, match=r"no_answer: 200 with text/html.*<html>hi</html>"):
            await queue.llm_result(id_, timeout_s=20)
    assert fake.calls("POST /v1/chat/completions") == 2


async def test_a_paid_answer_that_is_no_json_is_not_bought_again(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    text = '{"choices": [{"message": {"content": "paid'
    fake.fault("POST", DIRECT["openai"], "status", status=200, text=text)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        id_ = await urgent(queue, "openai")
        assert await outcome(queue, id_) == "error malformed"
        assert await queue.llm.came(id_) == text.encode()
    assert fake.calls("POST /v1/chat/completions") == 1


async def test_an_answer_as_text_of_json_is_decoded(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    content = {"choices": [{"message": {"content": "echo: a"}}]}
    fake.fault("POST", DIRECT["openai"], "status", status=200, body=json.dumps(content))
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        assert await outcome(queue, await urgent(queue, "openai")) == "echo: a"
    assert fake.calls("POST /v1/chat/completions") == 1


async def test_a_long_direct_reply_is_stored_in_pieces_and_read_back(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    content = "echo: " + "a" * 400_000
    reply = {"choices": [{"message": {"content": content}}], "usage": {"prompt_tokens": 7}}
    fake.fault("POST", DIRECT["openai"], "status", status=200, body=reply)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        assert await outcome(queue, await urgent(queue, "openai")) == content


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
USED = {"prompt_tokens": 1, "completion_tokens": 2}
SAID = {"message": {"content": "hi"}}
EMPTY: list[Any] = [None, {}, "text", 1, [], [None], [{}], [[]], [1], ["text"]]


@pytest.mark.parametrize(
    ("endpoint", "came", "kind", "retryable"),
    [
        (CHAT, {"choices": [SAID]}, "", False),
        (CHAT, {"choices": [SAID], "error": {"code": "x"}}, "", False),
        (CHAT, {"choices": [{"message": {"content": None}}]}, "", False),
        (CHAT, {"choices": [{"message": {"tool_calls": [1]}}]}, "", False),
        *((CHAT, {"choices": empty}, "no_answer", True) for empty in EMPTY),
        (CHAT, {"choices": [{}]}, "no_answer", True),
        (CHAT, {"choices": [{"message": None}]}, "no_answer", True),
        (CHAT, {"choices": [{"message": {}}]}, "no_answer", True),
        (CHAT, {"choices": [{"message": "text"}]}, "no_answer", True),
        (CHAT, {"choices": [{"message": {"role": "assistant"}}]}, "no_answer", True),
        (CHAT, {"choices": [], "usage": USED}, "malformed", False),
        (CHAT, {"choices": [None], "usage": USED}, "malformed", False),
        (CHAT, {"choices": [SAID, None]}, "malformed", False),
        (CHAT, {"text": "answer", "usage": USED}, "malformed", False),
        (CHAT, {"error": {"code": "bad_prompt", "message": "no"}}, "bad_prompt", False),
        (CHAT, {"choices": [None], "error": {"code": 429}}, "429", True),
        (CHAT, None, "no_answer", True),
        (CHAT, "text", "no_answer", True),
        (CHAT, '{"choices": [1', "malformed", False),
        ("/v1/embeddings", {"data": [{"embedding": [0.5]}]}, "", False),
        ("/v1/embeddings", {"data": [{"embedding": "AACAPw=="}]}, "", False),
        *(("/v1/embeddings", {"data": empty}, "no_answer", True) for empty in EMPTY),
        ("/v1/embeddings", {"data": [{"embedding": []}]}, "no_answer", True),
        ("/v1/embeddings", {"data": [{"embedding": [0.5]}, None]}, "malformed", False),
        (RESPONSES, {"output": [{"type": "message"}]}, "", False),
        (RESPONSES, {"output": [], "status": "incomplete"}, "", False),
        (RESPONSES, {"output": [], "error": {"code": "server_error"}}, "server_error", True),
        *((RESPONSES, {"output": empty}, "no_answer", True) for empty in EMPTY),
        (RESPONSES, {"output": [None], "status": "completed"}, "no_answer", True),
        (MESSAGES, {"content": [{"type": "text", "text": ""}]}, "", False),
        (MESSAGES, {"content": [], "stop_reason": "end_turn"}, "", False),
        (MESSAGES, {"type": "error", "error": {"type": "api_error"}}, "api_error", True),
        *((MESSAGES, {"content": empty}, "no_answer", True) for empty in EMPTY),
        (MESSAGES, {"content": [None], "stop_reason": "end_turn"}, "no_answer", True),
        (MESSAGES, {"content": [{"text": "hi"}], "usage": USED}, "malformed", False),
    ],
)
def test_an_answer_is_what_its_endpoint_promises(
    endpoint: str, came: Any, kind: str, retryable: bool
) -> None:
    found = checked(Answer(body=came), endpoint)
    assert (found.kind, found.retryable) == (kind, retryable)
    if kind == "malformed":
        assert json.dumps(found.body) == json.dumps(came)
    if kind == "no_answer":
        assert (came if isinstance(came, str) else json.dumps(came)) in found.message
    # A row of a batch was paid for: it is bought again only if it holds nothing.
    row = checked(Answer(body=came), endpoint, is_row=True)
    in_row = ("malformed", False) if kind == "no_answer" and came else (kind, retryable)
    assert (row.kind, row.retryable) == in_row


async def test_a_long_answer_is_stored_in_pieces_and_read_back(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    text = "".join(f'word {number} \\ " ' for number in range(40_000))
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a", text, "b")
        again = await submit(queue, "openai", text)
        assert await outcomes(queue, ids) == ["echo: a", f"echo: {text}", "echo: b"]
        assert await outcomes(queue, again) == [f"echo: {text}"]
        (row,) = await eventually(lambda: ended(queue))
    assert row["succeeded"] == 3
    assert row["usage"]["output"] > 80_000
