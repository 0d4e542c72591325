"""Tests the fake provider with the providers' own SDKs, so that it follows the real protocol."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.support.providers import FakeProvider, fake_provider

if TYPE_CHECKING:
    import anthropic
    import openai

pytestmark = pytest.mark.integration

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


@pytest.fixture(scope="module", autouse=True)
def official_sdks() -> None:
    """Import them late: each process of a test run collects this file, and one needs them."""
    for name in ("anthropic", "openai"):
        globals()[name] = importlib.import_module(name)


@pytest.fixture(scope="module")
def one_fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def fake(one_fake: FakeProvider) -> FakeProvider:
    one_fake.reset()
    return one_fake


@pytest.fixture
def gpt(fake: FakeProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=fake.openai_url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(fake: FakeProvider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=fake.anthropic_url, api_key="k", max_retries=0) as client:
        yield client


def ask(text: str, **more: Any) -> Any:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def submit(gpt: openai.OpenAI, *texts: str) -> Any:
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": ask(text)}
        for n, text in enumerate(texts)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = gpt.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    return gpt.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"tag": "t1"},
    )


def ended(look: Callable[[], Any], states: set[str], field: str) -> Any:
    """Each poll advances the fake's batch, so a few polls are enough."""
    for _ in range(5):
        batch = look()
        if getattr(batch, field) in states:
            return batch
    raise AssertionError(f"still {getattr(batch, field)}")


def openai_ended(gpt: openai.OpenAI, id_: str) -> Any:
    terminal = {"completed", "failed", "expired", "cancelled"}
    return ended(lambda: gpt.batches.retrieve(id_), terminal, "status")


def rows(gpt: openai.OpenAI, file_id: str) -> dict[str, Any]:
    lines = gpt.files.content(file_id).text.splitlines()
    return {row["custom_id"]: row for row in map(json.loads, lines)}


def test_openai_batches_hold_answers_and_errors(gpt: openai.OpenAI) -> None:
    made = submit(gpt, "a", "please fail", "please overload", "please vanish", "please expire")
    assert made.status == "validating"
    assert [b.metadata for b in gpt.batches.list()] == [{"tag": "t1"}]
    batch = openai_ended(gpt, made.id)
    assert batch.status == "completed"
    good, bad = rows(gpt, batch.output_file_id), rows(gpt, batch.error_file_id)
    assert good["c0"]["response"]["body"]["choices"][0]["message"]["content"] == "echo: a"
    assert bad["c1"]["response"]["status_code"] == 400
    assert bad["c2"]["response"]["status_code"] == 503
    assert "c3" not in good | bad
    assert bad["c4"]["error"]["code"] == "batch_expired"


def test_openai_batches_fail_expire_and_are_canceled(
    gpt: openai.OpenAI, fake: FakeProvider
) -> None:
    fake.set(outcome="failed")
    batch = openai_ended(gpt, submit(gpt, "a").id)
    assert batch.status == "failed"
    assert batch.errors.data[0].code == "invalid_json_line"
    fake.set(outcome="expired")
    batch = openai_ended(gpt, submit(gpt, "a", "b").id)
    assert (batch.status, batch.request_counts.completed) == ("expired", 1)
    fake.set(outcome="completed", polls=99, empty_error_file=True)
    made = submit(gpt, "a", "b")
    assert gpt.batches.cancel(made.id).status == "cancelling"
    assert openai_ended(gpt, made.id).status == "cancelled"
    fake.set(polls=0)
    assert openai_ended(gpt, submit(gpt, "a").id).error_file_id == ""


def test_openai_lists_are_paged(gpt: openai.OpenAI, fake: FakeProvider) -> None:
    fake.set(list_limit=2)
    made = [submit(gpt, "a").id for _ in range(5)]
    assert [batch.id for batch in gpt.batches.list()] == made[::-1]


def test_openai_files_are_listed_and_deleted(gpt: openai.OpenAI, fake: FakeProvider) -> None:
    fake.set(list_limit=2)
    for _ in range(3):
        submit(gpt, "a")
    found = list(gpt.files.list(purpose="batch"))
    assert [row.filename for row in found] == ["in.jsonl"] * 3
    for row in found:
        assert gpt.files.delete(row.id).deleted
    assert list(gpt.files.list(purpose="batch")) == []
    with pytest.raises(openai.NotFoundError):
        gpt.files.delete(found[0].id)


def test_openai_refuses_a_poisoned_batch_without_naming_a_line(
    gpt: openai.OpenAI, fake: FakeProvider
) -> None:
    batch = openai_ended(gpt, submit(gpt, "a", "please poison").id)
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_request", None)]
    fake.set(poison_at="create")
    with pytest.raises(openai.BadRequestError):
        submit(gpt, "please poison")


def test_openai_files_are_usable_late(gpt: openai.OpenAI, fake: FakeProvider) -> None:
    fake.set(file_ready_s=1000)
    with pytest.raises(openai.BadRequestError, match="still pending"):
        submit(gpt, "a")
    (file,) = gpt.files.list(purpose="batch")
    assert str(gpt.files.retrieve(file.id).status) == "pending"
    fake.set(unready="404")
    assert gpt.files.retrieve(file.id).status == "processed"
    with pytest.raises(openai.NotFoundError):
        submit(gpt, "a")
    fake.set(file_ready_s=0.0, results_late_s=1000)
    batch = openai_ended(gpt, submit(gpt, "a").id)
    with pytest.raises(openai.NotFoundError):
        gpt.files.content(batch.output_file_id)


def test_openai_has_no_room_and_other_words(gpt: openai.OpenAI, fake: FakeProvider) -> None:
    fake.set(no_room=1)
    batch = openai_ended(gpt, submit(gpt, "a").id)
    assert [error.code for error in batch.errors.data] == ["token_limit_exceeded"]
    fake.set(spelling="canceled")
    made = submit(gpt, "a")
    batch = ended(lambda: gpt.batches.retrieve(made.id), {"canceled"}, "status")
    assert batch.completed_at


def test_openai_results_are_redirected_to_a_storage(gpt: openai.OpenAI, fake: FakeProvider) -> None:
    storage = fake.openai_url.replace("127.0.0.1", "localhost").replace("/v1", "/storage")
    fake.set(storage=storage)
    batch = openai_ended(gpt, submit(gpt, "a", "please garble").id)
    lines = gpt.files.content(batch.output_file_id).text.splitlines()
    assert sum(line.endswith("-nan}") for line in lines) == 1


def test_openai_single_calls_and_faults(gpt: openai.OpenAI, fake: FakeProvider) -> None:
    answer = gpt.chat.completions.create(**ask("hello"))
    assert answer.choices[0].message.content == "echo: hello"
    assert answer.usage is not None
    with pytest.raises(openai.BadRequestError):
        gpt.chat.completions.create(**ask("please fail"))
    fake.fault("POST", CHAT, "status", status=429, headers={"retry-after": "1"})
    with pytest.raises(openai.RateLimitError):
        gpt.chat.completions.create(**ask("hello"))
    fake.fault("POST", "/v1/batches", "drop")
    with pytest.raises(openai.APIConnectionError):
        submit(gpt, "a")
    assert len(fake.report()["batches"]) == 1
    fake.fault("POST", "/v1/batches", "lose")
    with pytest.raises(openai.APIConnectionError):
        submit(gpt, "a")
    assert len(fake.report()["batches"]) == 1
    fake.set(not_found=1)
    id_ = next(iter(fake.report()["batches"]))
    with pytest.raises(openai.NotFoundError):
        gpt.batches.retrieve(id_)
    assert gpt.batches.retrieve(id_).status == "in_progress"


def test_the_official_client_posts_a_batch_twice_after_a_lost_reply(
    fake: FakeProvider,
) -> None:
    with openai.OpenAI(base_url=fake.openai_url, api_key="k", max_retries=2) as gpt:
        fake.fault("POST", "/v1/batches", "drop", times=2)
        submit(gpt, "a")
    # The state `submitting` exists for this case.
    assert len(fake.report()["batches"]) == 3


def test_anthropic_batches_hold_mixed_results(
    claude: anthropic.Anthropic, fake: FakeProvider
) -> None:
    texts = ["a", "please fail", "please overload", "please vanish", "please expire"]
    requests: Any = [
        {"custom_id": f"c{n}", "params": ask(text, max_tokens=9)} for n, text in enumerate(texts)
    ]
    made = claude.messages.batches.create(requests=requests)
    assert (made.processing_status, made.request_counts.processing) == ("in_progress", 5)
    fake.set(not_found=1)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.batches.retrieve(made.id)
    batch = ended(lambda: claude.messages.batches.retrieve(made.id), {"ended"}, "processing_status")
    assert batch.request_counts.succeeded == 1
    results: dict[str, Any] = {
        r.custom_id: r.result for r in claude.messages.batches.results(made.id)
    }
    assert results["c0"].message.content[0].text == "echo: a"
    assert results["c1"].error.error.type == "invalid_request_error"
    assert results["c2"].error.error.type == "overloaded_error"
    assert "c3" not in results
    assert results["c4"].type == "expired"
    assert [b.id for b in claude.messages.batches.list()] == [made.id]


def test_anthropic_batches_are_canceled_with_partial_results(
    claude: anthropic.Anthropic, fake: FakeProvider
) -> None:
    fake.set(polls=99)
    requests: Any = [{"custom_id": f"c{n}", "params": ask("a", max_tokens=9)} for n in range(2)]
    made = claude.messages.batches.create(requests=requests)
    assert claude.messages.batches.cancel(made.id).processing_status == "canceling"
    assert claude.messages.batches.retrieve(made.id).processing_status == "ended"
    kinds = {r.custom_id: r.result.type for r in claude.messages.batches.results(made.id)}
    assert kinds == {"c0": "succeeded", "c1": "canceled"}


def test_anthropic_single_calls_and_faults(claude: anthropic.Anthropic, fake: FakeProvider) -> None:
    answer: Any = claude.messages.create(**ask("hello", max_tokens=9))
    assert answer.content[0].text == "echo: hello"
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(**ask("please fail", max_tokens=9))
    with pytest.raises(anthropic.APIStatusError) as caught:
        claude.messages.create(**ask("please overload", max_tokens=9))
    assert caught.value.status_code == 529
