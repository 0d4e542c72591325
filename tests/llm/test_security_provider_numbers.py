"""Tests that numbers, ids and texts from providers and callers are bounded and stop no batch."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from worker.errors import InvalidArgument, Permanent, Transient
from worker.llm.answers import Answer
from worker.llm.grouping import MOST_OUTPUT_TOKENS, Group, check_request
from worker.llm.providers import OpenAIProvider
from worker.llm.providers.anthropic import AnthropicProvider
from worker.llm.providers.calls import checked, json_of, retry_after_s
from worker.llm.providers.protocol import split_custom_id
from worker.llm.providers.rows import in_path, usable_id
from worker.llm.providers.single import read_single
from worker.llm.result_lines import read_item
from worker.llm.stored_answers import decode_answer, encode_answer
from worker.llm.usage import Usage, read_usage
from worker.numbers import whole

pytestmark = pytest.mark.unit

CHAT = Group("openai", "/v1/chat/completions", "m")
LIMIT_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@pytest.mark.parametrize("name", LIMIT_FIELDS)
@pytest.mark.parametrize(
    "value", [MOST_OUTPUT_TOKENS + 1, 10**12, 2**63 - 1, 2**64, 10**40, 1e12, float("inf")]
)
def test_an_output_limit_beyond_any_model_is_refused(name: str, value: Any) -> None:
    request = {"model": "m", "messages": ["x"], name: value}
    with pytest.raises(InvalidArgument, match=name):
        check_request(request, provider="openai", endpoint=CHAT.endpoint, max_bytes=10**6)


def test_the_largest_output_limit_is_accepted() -> None:
    request = {"model": "m", "messages": ["x"], "max_tokens": MOST_OUTPUT_TOKENS}
    checked = check_request(request, provider="openai", endpoint=CHAT.endpoint, max_bytes=10**6)
    assert checked.tokens > MOST_OUTPUT_TOKENS


@pytest.mark.parametrize(
    "count",
    [10**12 + 1, 2**63 - 1, 2**63, 10**30, -5, True, "7 tokens", [1], None, float("nan"), 1.5],
)
def test_usage_that_is_not_a_token_count_is_not_summed(count: Any) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": 3}
    assert read_usage({"usage": usage}) == Usage(0, 3, 0, 0)


@pytest.mark.parametrize(
    ("status", "is_answer"),
    [
        (200, True),
        ("200", True),
        (" 200 ", True),
        (200.0, True),
        ("OK", True),
        (None, True),
        ([], True),
        (1e309, True),
        (2**70, True),
        ("500", False),
        (400, False),
    ],
)
def test_a_status_of_any_type_leaves_a_paid_answer_readable(status: Any, is_answer: bool) -> None:
    answer = read_item({"response": {"status_code": status, "body": {"choices": []}}})
    assert answer.ok is is_answer


def test_an_error_with_an_invalid_status_stays_an_error() -> None:
    error = {"error": {"code": "bad", "message": "no"}}
    assert read_item({"response": {"status_code": "oops", "body": error}}).kind == "bad"


@pytest.mark.parametrize("code", [{"a": 1}, ["x"], "x" * 10**6, "\ud800", 7, 1.5])
def test_an_error_code_of_any_type_is_short_text(code: Any) -> None:
    answer = read_item({"error": {"code": code, "message": code}})
    assert 0 < len(answer.kind) <= 2000
    assert decode_answer(encode_answer(answer)).kind == answer.kind


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2**64},
        {"n": -(2**63) - 1},
        {"n": 10**400},
        {"text": "\ud800"},
        {"deep": [{"n": [2**80]}]},
        {"x": float("inf"), "n": 2**70},
    ],
)
def test_an_answer_beyond_64_bits_or_utf8_is_stored_unchanged(body: Any) -> None:
    assert decode_answer(encode_answer(Answer(body=body))).body == body


def test_an_answer_that_cannot_be_encoded_becomes_an_error() -> None:
    body: Any = []
    for _ in range(100_000):
        body = [body]
    kept = decode_answer(encode_answer(Answer(body=body)))
    while body:
        body = body[0]
    assert kept.kind == "unstorable"


@pytest.mark.parametrize(
    "text",
    ['{"n": 1e309}', '{"n": NaN}', '{"n": "\\ud800"}', f'{{"n": {10**40}}}'],
)
def test_json_beyond_the_standard_is_read(text: str) -> None:
    assert isinstance(json_of(httpx.Response(200, content=text.encode())), dict)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "nan", "retry-after": "3"}, 3.0),
        ({"retry-after": "1e309"}, 3600.0),
        ({"retry-after": "inf"}, 3600.0),
        ({"retry-after": "-1e309"}, 0.0),
        ({"retry-after": "-inf"}, 0.0),
        ({"retry-after": "9" * 5000}, 3600.0),
        ({"retry-after": "Mon, 99 Foo 2020", "date": "x"}, None),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 GMT", "date": "Mon, 01 Jan 2024 00:00"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_an_invalid_retry_after_is_ignored(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(httpx.Headers(headers)) == wait_s


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "a b", "a\nb", "\ud800", "é", "x" * 257, ".", "..", "a/../b", "/a", "a/"),
        *(None, True, 1.5, {}, [], ["a"]),
    ],
)
def test_an_invalid_provider_id_is_none(value: Any) -> None:
    assert usable_id(value) is None


@pytest.mark.parametrize("value", ["batch_1", "batches/12", "YmF0Y2g=", "a:b@c", 12])
def test_a_valid_provider_id_is_text(value: Any) -> None:
    assert usable_id(value) == str(value)
    assert in_path("a?b#c%2f") == "a%3Fb%23c%252f"


ODD_IDS: list[Any] = [None, [], {}, "", "a b", "../../v1/models", "\ud800", "x" * 5000, True]


def provider_answering(answers: dict[str, Any], kind: str = "openai") -> Any:
    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/v1")
        body = json.dumps(answers[f"{request.method} {path}"]).encode()
        # A stream, as from a socket: httpx treats content in bytes as read already.
        return httpx.Response(200, stream=httpx.ByteStream(body))

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    cls = OpenAIProvider if kind == "openai" else AnthropicProvider
    base = "https://provider.test/v1" if kind == "openai" else "https://provider.test"
    return cls(client, base_url=base, api_key="k", timeout_s=5)


class NoLines:
    batch_id = "b"
    endpoint = CHAT.endpoint

    def total(self, around: int) -> int:  # noqa: ARG002
        return 0

    async def pages(self, *_args: Any, **_more: Any) -> Any:
        nothing: list[bytes] = []
        for chunk in nothing:
            yield chunk


@pytest.mark.parametrize("id_", ODD_IDS)
async def test_a_batch_with_an_invalid_provider_id_ends(id_: Any) -> None:
    provider = provider_answering({"POST /batches": {"id": id_, "status": "validating"}})
    with pytest.raises(Permanent, match="no valid id"):
        await provider.submit(CHAT, NoLines(), file_id="f")


@pytest.mark.parametrize("id_", [id_ for id_ in ODD_IDS if id_])
async def test_a_result_file_with_an_invalid_id_ends_the_batch(id_: Any) -> None:
    row = {"id": "b", "status": "completed", "output_file_id": id_}
    with pytest.raises(Permanent, match="no valid id"):
        await provider_answering({"GET /batches/b": row}).read("b")


@pytest.mark.parametrize(
    "row",
    [
        {"status": ["x"], "errors": "text"},
        {"status": "failed", "errors": {"data": "text"}},
        {"status": "failed", "errors": {"data": ["text", 5, {"line": 2**80, "message": {}}]}},
        {"id": 7, "status": None, "errors": [1]},
    ],
)
async def test_a_batch_row_of_any_shape_is_read(row: Any) -> None:
    remote = await provider_answering({"GET /batches/b": row}).read("b")
    assert remote.id == "b"
    assert not remote.bad_lines


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "page",
    [
        {"data": "text"},
        {"data": ["text", None, 5, {}]},
        {"data": [{"id": None, "request_counts": [1], "metadata": "x", "created_at": "9999"}]},
        {"data": [{"id": "same", "created_at": "9999-01-01T00:00:00Z"}], "has_more": True},
        {"data": {"id": "x"}, "has_more": True},
    ],
)
async def test_a_list_of_any_shape_ends_the_lookup(kind: str, page: Any) -> None:
    path = "/batches" if kind == "openai" else "/messages/batches"
    provider = provider_answering({f"GET {path}": page}, kind)
    lookup = await provider.find("b", since_ms=0, count=1, taken=())
    assert lookup.provider_id == ""


@pytest.mark.parametrize(
    "custom_id", ["\ud800-b", "a b-b", "x" * 100 + "-b", "r\n-b", "", "-", "None"]
)
def test_a_line_with_a_foreign_custom_id_belongs_to_no_batch(custom_id: str) -> None:
    assert split_custom_id(custom_id)[1] == ""


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"12", 12),
        ("12", 12),
        (12.0, 12),
        (b"-1", 0),
        (b"1e5", 0),
        ("\u0661", 0),
        (b"", 0),
        (None, 0),
        (2**53 + 1, 0),
        (True, 0),
    ],
)
def test_a_number_from_outside_is_whole_and_bounded(value: Any, found: int) -> None:
    assert whole(value) == found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b'{"error": {"code": "token_limit_exceeded", "message": "no room"}}',
            ": token_limit_exceeded: no room",
        ),
        (b'{"detail": "paused"}', ": paused"),
        (b"upstream\n reset", ": upstream reset"),
        (b"<html>a proxy</html>", ""),
        (b"", ""),
        (b"{}", ": {}"),
        (b'{"error": {"message": "' + b"x" * 5000 + b'"}}', ": " + "x" * 300),
    ],
)
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failed_call_says_what_the_provider_said(
    status: int, content: bytes, words: str
) -> None:
    reply = httpx.Response(status, content=content)
    message = f"the provider answered {status}{words}"
    with pytest.raises(Transient) as batches:
        checked(reply)
    with pytest.raises(Transient) as single:
        await read_single(reply)
    assert [str(batches.value), str(single.value)] == [message] * 2
