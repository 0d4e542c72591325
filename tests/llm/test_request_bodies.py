"""Tests that a request is sent as it was given, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import InvalidArgument
from worker.llm.grouping import LLMRequest, check_request

pytestmark = pytest.mark.unit

CHAT = "/v1/chat/completions"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("azé\n"), inner),
    max_leaves=12,
)


def checked(**more: Any) -> LLMRequest:
    body = {"model": "m", "messages": ["x"], **more}
    return check_request(body, provider="openai", endpoint=CHAT, max_bytes=10**6)


def pairs(value: Any) -> Any:
    """A value in which the order of keys counts."""
    if isinstance(value, dict):
        return [(key, pairs(inner)) for key, inner in value.items()]
    return [pairs(inner) for inner in value] if isinstance(value, list) else value


@settings(max_examples=60)
@given(VALUES)
def test_a_body_is_sent_in_the_order_it_was_given(extra: Any) -> None:
    sent = json.loads(checked(extra=extra).body)
    assert pairs(sent) == [("model", "m"), ("messages", ["x"]), ("extra", pairs(extra))]


def test_another_order_of_a_schema_is_another_request() -> None:
    one = checked(schema={"reasoning": "string", "answer": "string"})
    two = checked(schema={"answer": "string", "reasoning": "string"})
    assert one.digest("g") != two.digest("g")
    assert one.digest("g") == checked(schema={"reasoning": "string", "answer": "string"}).digest(
        "g"
    )


@pytest.mark.parametrize("key", [1, 1.5, True, None])
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: [d], lambda d: ({"a": d},)])
def test_a_key_that_is_no_text_is_refused(key: Any, wrap: Any) -> None:
    with pytest.raises(InvalidArgument, match="no text"):
        checked(extra=wrap({key: "x"}))


def test_tuples_are_sent_as_lists() -> None:
    assert json.loads(checked(extra=(1, (2,))).body)["extra"] == [1, [2]]
