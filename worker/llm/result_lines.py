"""
Reads the object of a result line as an answer. Pure.

A line with a response was paid for: what it holds decides, not the fields beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.llm.answers import (
    CANCELED,
    MALFORMED,
    RETRYABLE,
    Answer,
    clipped,
    read_error,
    read_response,
    unwrapped,
)
from worker.numbers import whole

_KIND_CHARS, _MESSAGE_CHARS = 200, 10_000


def read_item(item: Mapping[str, Any]) -> Answer:
    """Read a line of an OpenAI batch's output or error file."""
    response, error = item.get("response"), item.get("error")
    answer = None
    if isinstance(response, Mapping):
        body = unwrapped(response.get("body"))
        answer = read_response(_status(response.get("status_code"), body), body)
        if answer.ok and isinstance(body, Mapping):
            return answer  # some write an error without content beside it
    if isinstance(error, Mapping) and any(error.values()):
        return _read_line_error(error)
    if isinstance(error, str) and error:
        return Answer(kind="error", message=clipped(error, _MESSAGE_CHARS))
    message = "the provider's line has neither response nor error"
    return answer or Answer(kind=MALFORMED, message=message, body=item)


def _read_line_error(error: Mapping[str, Any]) -> Answer:
    kind = clipped(error.get("code") or "error", _KIND_CHARS)
    if kind in {"batch_cancelled", "batch_canceled"}:
        return CANCELED
    message = clipped(error.get("message") or "", _MESSAGE_CHARS)
    return Answer(kind=kind, message=message, retryable=kind in RETRYABLE)


def _status(value: Any, body: Any) -> int:
    """The line's HTTP status. Without a valid one, the body decides between 200 and 0."""
    status = whole(value.strip() if isinstance(value, str) else value, most=599)
    if status >= 100:
        return status
    return 200 if isinstance(body, Mapping) and not body.get("error") else 0


def read_message_item(item: Mapping[str, Any]) -> Answer:
    """Read a line of an Anthropic batch's results."""
    result = item.get("result")
    if not isinstance(result, Mapping):
        return Answer(kind=MALFORMED, message="the provider's line has no result", body=item)
    kind, message = clipped(result.get("type"), _KIND_CHARS), unwrapped(result.get("message"))
    if kind.lower() == "succeeded" or isinstance(message, Mapping):
        return Answer(body=message)
    if kind.lower() in {"canceled", "cancelled"}:
        return CANCELED
    if kind.lower() == "expired":
        return Answer(
            kind="expired", message="the batch expired before the request ran", retryable=True
        )
    error = result.get("error")
    inner = error.get("error") if isinstance(error, Mapping) else None
    if isinstance(inner, Mapping) and inner:
        return read_error(inner, fallback="error")
    return Answer(kind="error", message=f"the provider's result is of the type {kind}")
