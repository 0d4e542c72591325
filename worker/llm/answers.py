"""
Reads a provider's result line or response as an answer, and decides what happens to its request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from worker.numbers import whole

# Above any real count. It keeps sums of usage within 64 bits.
_MOST_TOKENS = 10**12
_KIND_CHARS, _MESSAGE_CHARS = 200, 10_000
# Error kinds after which the same request may succeed.
_RETRYABLE = frozenset(
    {
        "api_error",
        "batch_expired",
        "expired",
        "missing",
        "overloaded_error",
        "rate_limit_error",
        "rate_limit_exceeded",
        "server_error",
        "timeout_error",
    }
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them; `cached` are part of `input`, `reasoning` of `output`."""

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.input or self.output)


@dataclass(frozen=True, slots=True)
class Answer:
    """
    How a request ended: with the provider's response body, or with an error's kind and message.

    `retryable`: the same request may succeed later.
    """

    body: Any = None
    kind: str = ""
    message: str = ""
    retryable: bool = False

    @property
    def ok(self) -> bool:
        return not self.kind


# Errors of a whole batch, not of one of its lines.
_OF_THE_WHOLE = frozenset(
    {
        "billing_hard_limit_reached",
        "insufficient_quota",
        "invalid_api_key",
        "model_not_found",
        "rate_limit_exceeded",
        "server_error",
        "token_limit_exceeded",
    }
)
_MAY_PASS = frozenset({"rate_limit_exceeded", "server_error", "token_limit_exceeded"})


def whole_batch_error(code: str, message: str) -> Answer | None:
    """The answer for every request of a refused batch; None when only some lines are at fault."""
    if code not in _OF_THE_WHOLE:
        return None
    return Answer(kind=code, message=message, retryable=code in _MAY_PASS)


MISSING = Answer(
    kind="missing", message="the provider returned no line for the request", retryable=True
)
CANCELED = Answer(kind="canceled", message="the request was canceled")
LATE = Answer(kind="deadline_exceeded", message="the deadline passed before an answer arrived")


def read_item(item: Mapping[str, Any]) -> Answer:
    """Read a line of an OpenAI batch's output or error file."""
    error = item.get("error")
    if isinstance(error, Mapping):
        kind = clipped(error.get("code") or "error", _KIND_CHARS)
        if kind == "batch_cancelled":
            return CANCELED
        message = clipped(error.get("message") or "", _MESSAGE_CHARS)
        return Answer(kind=kind, message=message, retryable=kind in _RETRYABLE)
    response = item.get("response")
    if not isinstance(response, Mapping):
        return Answer(
            kind="malformed", message="the provider's line has neither response nor error"
        )
    body = response.get("body")
    return read_response(_status(response.get("status_code"), body), body)


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
        return Answer(kind="malformed", message="the provider's line has no result")
    kind = result.get("type")
    if kind == "succeeded":
        return Answer(body=result.get("message"))
    if kind == "canceled":
        return CANCELED
    if kind == "expired":
        return Answer(
            kind="expired", message="the batch expired before the request ran", retryable=True
        )
    error = result.get("error")
    inner = error.get("error") if isinstance(error, Mapping) else None
    return _error(inner if isinstance(inner, Mapping) else {}, fallback="error")


def read_response(status: int, body: Any) -> Answer:
    """Read an HTTP status and a decoded body."""
    if 200 <= status < 300:
        return Answer(body=body)
    error = body.get("error") if isinstance(body, Mapping) else None
    answer = _error(error if isinstance(error, Mapping) else {}, fallback=f"http_{status}")
    if is_transient(status) and not answer.retryable:
        return Answer(kind=answer.kind, message=answer.message, retryable=True)
    return answer


def _error(error: Mapping[str, Any], *, fallback: str) -> Answer:
    kind = clipped(error.get("code") or error.get("type") or fallback, _KIND_CHARS)
    message = clipped(error.get("message") or "", _MESSAGE_CHARS)
    return Answer(kind=kind, message=message, retryable=kind in _RETRYABLE)


def clipped(value: Any, most: int) -> str:
    """A provider's value as text that can be stored: at most `most` characters, valid UTF-8."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        text = type(value).__name__
    return text[:most].encode("utf-8", "backslashreplace").decode()


def is_transient(status: int) -> bool:
    """Whether the same request may succeed after this status."""
    return status in {408, 409, 425, 429, 529} or status >= 500


def read_usage(body: Any) -> Usage:
    """Tokens of a response body, by OpenAI's or Anthropic's field names."""
    usage = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(usage, Mapping):
        return Usage()
    cached_in = _inner(usage, "prompt_tokens_details") or _inner(usage, "input_tokens_details")
    thought = _inner(usage, "completion_tokens_details") or _inner(usage, "output_tokens_details")
    read = _count(usage.get("cache_read_input_tokens"))
    written = _count(usage.get("cache_creation_input_tokens"))
    # Anthropic counts cache reads and writes in addition to the input, OpenAI as part of it.
    return Usage(
        input=_count(usage.get("prompt_tokens", usage.get("input_tokens"))) + read + written,
        output=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached=_count(cached_in.get("cached_tokens")) + read,
        reasoning=_count(thought.get("reasoning_tokens")),
    )


def _inner(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, Mapping) else {}


def _count(value: Any) -> int:
    return whole(value, most=_MOST_TOKENS)


class Fate(StrEnum):
    """What happens to a request of an ended batch."""

    ANSWER = "answer"  # finished with this answer
    PUT_BACK = "put_back"  # waits for another batch
    SINGLE = "single"  # sent as a direct call


def decide_fate(
    answer: Answer, *, tries: int, max_tries: int, left_s: float | None, margin_s: float
) -> Fate:
    """
    Decide what happens to a request after an answer.

    `tries` is how many batches contained it; `left_s` the time to its deadline, or None.
    """
    if not answer.retryable:
        return Fate.ANSWER
    if left_s is not None and 0 < left_s <= margin_s:
        return Fate.SINGLE
    return Fate.PUT_BACK if tries < max_tries else Fate.ANSWER
