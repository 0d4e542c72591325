"""Tests how answers are read and what is decided about items and unconfirmed batches."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from worker.errors import InvalidArgument
from worker.llm.answers import (
    Answer,
    Fate,
    decide_fate,
    read_response,
)
from worker.llm.grouping import check_request
from worker.llm.providers.calls import retry_after_s
from worker.llm.providers.protocol import split_custom_id
from worker.llm.result_lines import read_item, read_message_item
from worker.llm.states import LookupResult, OnAmbiguous, UnconfirmedDecision, decide_unconfirmed
from worker.llm.stored_answers import decode_answer, encode_answer
from worker.llm.usage import Usage, read_usage

pytestmark = pytest.mark.unit

RETRYABLE = Answer(kind="expired", retryable=True)
ABSENT, UNSEEN = LookupResult(), LookupResult(complete=False)


@pytest.mark.parametrize(
    ("answer", "tries", "left_s", "fate"),
    [
        (Answer(body={}), 1, None, Fate.ANSWER),
        (Answer(kind="invalid_request"), 1, None, Fate.ANSWER),
        (RETRYABLE, 1, None, Fate.PUT_BACK),
        (RETRYABLE, 3, None, Fate.ANSWER),
        (RETRYABLE, 1, 1000.0, Fate.PUT_BACK),
        (RETRYABLE, 1, 60.0, Fate.SINGLE),
        (RETRYABLE, 3, 60.0, Fate.SINGLE),
        (RETRYABLE, 3, -1.0, Fate.ANSWER),
    ],
)
def test_an_item_is_answered_put_back_or_sent_as_a_direct_call(
    answer: Answer, tries: int, left_s: float | None, fate: Fate
) -> None:
    assert decide_fate(answer, tries=tries, max_tries=3, left_s=left_s, margin_s=120) is fate


@pytest.mark.parametrize(
    ("lookup", "choice", "age_s", "decision"),
    [
        (LookupResult("b1"), OnAmbiguous.FAIL, 0, UnconfirmedDecision.ADOPT),
        (ABSENT, OnAmbiguous.ADOPT, 119, UnconfirmedDecision.WAIT),
        (ABSENT, OnAmbiguous.ADOPT, 121, UnconfirmedDecision.SUBMIT),
        (ABSENT, OnAmbiguous.RESUBMIT, 119, UnconfirmedDecision.WAIT),
        (UNSEEN, OnAmbiguous.ADOPT, 9999, UnconfirmedDecision.WAIT),
        (UNSEEN, OnAmbiguous.RESUBMIT, 121, UnconfirmedDecision.SUBMIT),
        (UNSEEN, OnAmbiguous.FAIL, 121, UnconfirmedDecision.FAIL),
        (ABSENT, OnAmbiguous.FAIL, 119, UnconfirmedDecision.WAIT),
        (ABSENT, OnAmbiguous.FAIL, 121, UnconfirmedDecision.FAIL),
    ],
)
def test_an_unconfirmed_batch_is_resent_only_after_a_complete_lookup(
    lookup: LookupResult, choice: OnAmbiguous, age_s: float, decision: UnconfirmedDecision
) -> None:
    found = decide_unconfirmed(lookup, on_ambiguous=choice, age_s=age_s, wait_s=120)
    assert found is decision


@pytest.mark.parametrize(
    ("item", "kind", "retryable"),
    [
        ({"response": {"status_code": 200, "body": {"a": 1}}, "error": None}, "", False),
        ({"response": None, "error": {"code": "batch_expired"}}, "batch_expired", True),
        ({"response": None, "error": {"code": "batch_cancelled"}}, "canceled", False),
        ({"response": {"status_code": 503, "body": None}}, "http_503", True),
        ({"response": {"status_code": 400, "body": {"error": {"code": "bad"}}}}, "bad", False),
        ({}, "malformed", False),
        # An answer was paid for, whatever stands beside it.
        ({"response": {"body": {"a": 1}}, "error": {}}, "", False),
        ({"response": {"body": {"a": 1}}, "error": {"code": None, "message": ""}}, "", False),
        ({"response": {"body": {"a": 1}}, "error": {"code": "batch_expired"}}, "", False),
        ({"response": {"status_code": 200, "body": '{"a": NaN}'}}, "", False),
        ({"response": {}, "error": {"code": "batch_expired"}}, "batch_expired", True),
        ({"response": None, "error": "out of memory"}, "error", False),
        ({"result": {"choices": [1]}, "error": {}}, "malformed", False),
    ],
)
def test_lines_of_openai_are_read(item: dict[str, Any], kind: str, retryable: bool) -> None:
    answer = read_item(item)
    assert (answer.kind, answer.retryable) == (kind, retryable)
    if answer.ok:
        assert list(answer.body) == ["a"]
    if kind == "malformed":
        assert answer.body == item


@pytest.mark.parametrize(
    ("result", "kind", "retryable"),
    [
        ({"type": "succeeded", "message": {"a": 1}}, "", False),
        ({"type": "expired"}, "expired", True),
        ({"type": "canceled"}, "canceled", False),
        ({"type": "errored", "error": {"error": {"type": "api_error"}}}, "api_error", True),
        (
            {"type": "errored", "error": {"error": {"type": "invalid_request_error"}}},
            "invalid_request_error",
            False,
        ),
        ({"type": "errored"}, "error", False),
        (None, "malformed", False),
        ({"type": "SUCCEEDED", "message": {"a": 1}}, "", False),
        ({"type": "completed", "message": {"a": 1}}, "", False),
        ({"type": "succeeded", "message": '{"a": 1}'}, "", False),
        ({"type": "Expired"}, "expired", True),
    ],
)
def test_lines_of_anthropic_are_read(result: Any, kind: str, retryable: bool) -> None:
    answer = read_message_item({"custom_id": "c", "result": result})
    assert (answer.kind, answer.retryable) == (kind, retryable)


def test_a_result_of_an_unknown_type_says_which() -> None:
    answer = read_message_item({"result": {"type": "paused"}})
    assert (answer.kind, answer.message) == (
        "error",
        "the provider's result is of the type paused",
    )


def test_usage_is_read_by_either_providers_field_names() -> None:
    openai = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    claude = {"input_tokens": 6, "output_tokens": 5, "cache_read_input_tokens": 4}
    assert read_usage({"usage": openai}) == Usage(10, 5, 4, 3)
    assert read_usage({"usage": claude}) == Usage(10, 5, 4, 0)
    stranger: list[Any] = [None, [], {}, {"usage": 3}, {"usage": {"prompt_tokens": "many"}}]
    for strange in stranger:
        assert read_usage(strange) == Usage()


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "999999"}, 3600.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30.0,
        ),
    ],
)
def test_the_requested_wait_of_a_provider_is_read(
    headers: dict[str, str], wait_s: float | None
) -> None:
    assert retry_after_s(httpx.Headers(headers)) == wait_s


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_stored_answer_is_read_back_unchanged(size: int) -> None:
    answer = Answer(body={"text": "x" * size}, kind="", message="")
    data = encode_answer(answer)
    assert decode_answer(data) == answer
    assert len(data) < 8300


def test_a_custom_id_names_request_and_batch_within_64_characters() -> None:
    custom_id = f"req_{'a' * 32}-{'b' * 24}"
    assert len(custom_id) <= 64
    assert split_custom_id(custom_id) == ("req_" + "a" * 32, "b" * 24)
    assert split_custom_id("foreign") == ("foreign", "")


def test_an_anthropic_request_needs_its_max_tokens() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    for wrong in ({}, {"max_tokens": 0}, {"max_tokens": True}, {"max_tokens": "9"}):
        with pytest.raises(InvalidArgument, match="max_tokens"):
            check_request(
                {**body, **wrong}, provider="anthropic", endpoint="messages", max_bytes=9999
            )
    good = check_request(
        {**body, "max_tokens": 50}, provider="anthropic", endpoint="messages", max_bytes=9999
    )
    assert good.tokens > 50


def test_a_refused_direct_call_keeps_its_error_kind() -> None:
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    assert read_response(400, error) == Answer(kind="invalid_request_error", message="no")
