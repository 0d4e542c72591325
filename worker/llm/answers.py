"""
Reads a provider's response as an answer, and decides what happens to its request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from worker.llm.outline import is_dense
from worker.llm.usage import read_usage
from worker.numbers import whole

_KIND_CHARS, _MESSAGE_CHARS = 200, 10_000
# Error kinds after which the same request may succeed.
RETRYABLE = frozenset(
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


MALFORMED, NO_ANSWER = "malformed", "no_answer"
_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class _Promise:
    """
    What each answer of an endpoint has: a list of objects, each with a value in `field`.

    The list may be empty in an answer that has the field `ended`.
    """

    name: str
    field: str
    kinds: tuple[type, ...]
    ended: str = ""

    def holds_for(self, part: Any) -> bool:
        value = part.get(self.field) if isinstance(part, Mapping) else None
        # A message that has only a role says nothing.
        said = value.keys() - {"role"} if isinstance(value, dict) else value
        return isinstance(value, self.kinds) and bool(said)


_PROMISED: Mapping[str, _Promise] = {
    "/v1/chat/completions": _Promise("choices", "message", (dict,)),
    "/v1/embeddings": _Promise("data", "embedding", (list, str)),
    "/v1/messages": _Promise("content", "type", (str,), "stop_reason"),
    "/v1/responses": _Promise("output", "type", (str,), "status"),
}


@dataclass(frozen=True, slots=True)
class LongText:
    """A text in pieces of at most 256 KiB."""

    pieces: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """
    How a request ended: with the provider's response body, or with an error's kind and message.

    `retryable`: the same request may succeed later. An answer of kind `malformed` was paid for:
    its `body` is what came, as bytes. `text`: what came, of an answer too long to be decoded; the
    body is at `path` in it, and `body` is its outline. `size`: bytes of what came, if known.
    """

    body: Any = None
    kind: str = ""
    message: str = ""
    retryable: bool = False
    text: LongText | None = None
    path: tuple[str, ...] = ()
    size: int = 0

    @property
    def ok(self) -> bool:
        return not self.kind


FILE_MISSING = "input_file_not_found"
# Errors of a whole batch, not of one of its lines.
_OF_THE_WHOLE = frozenset(
    {
        FILE_MISSING,
        "billing_hard_limit_reached",
        "insufficient_quota",
        "invalid_api_key",
        "model_not_found",
        "server_error",
    }
)
_MAY_PASS = frozenset({"server_error"})
# The provider has no room for the batch now: it waits, whatever its requests are.
NO_ROOM = frozenset({"rate_limit_exceeded", "token_limit_exceeded"})


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


def unreadable(message: str, came: bytes | LongText | None) -> Answer:
    """The answer of kind `malformed`, with what came."""
    if isinstance(came, LongText):
        return Answer(kind=MALFORMED, message=message, text=came)
    return Answer(kind=MALFORMED, message=message, body=came)


def checked(answer: Answer, endpoint: str, *, is_row: bool = False) -> Answer:
    """
    Return the answer if its body is what the endpoint promises.

    Otherwise an error in the body is the answer. Without one, a body that was paid for is
    `malformed`, so that it is kept and not bought again: it tells of used tokens, or has a part of
    what is promised, or `is_row`, a row of a batch's results that holds anything. Any other is no
    answer.
    """
    promise = _PROMISED.get(endpoint)
    if not answer.ok or promise is None:
        return answer
    body = answer.body
    fields = body if isinstance(body, Mapping) else {}
    error, parts = fields.get("error"), fields.get(promise.name)
    good = _good_parts(answer, promise, parts)
    is_whole = isinstance(parts, list) and len(good) == len(parts)
    if is_whole and (good or (promise.ended in fields and not error)):
        return answer
    if isinstance(error, Mapping) and error:
        found = read_error(error, fallback="error")
        passes = found.retryable or is_transient(whole(error.get("code"), most=599))
        return Answer(kind=found.kind, message=found.message, retryable=passes, size=answer.size)
    message = f"the provider's answer has no valid {promise.name}"
    is_paid = good or (is_row and body) or not read_usage(body).is_empty
    if is_paid or is_text_of_json(answer):
        return replace(answer, kind=MALFORMED, message=message, path=())
    return no_answer(f"{message}: {_shown(body)}")


def _good_parts(answer: Answer, promise: _Promise, parts: Any) -> list[Any]:
    if not isinstance(parts, list):
        return []
    # The outline of a long answer has no parts.
    return parts if answer.text is not None else [part for part in parts if promise.holds_for(part)]


def is_text_of_json(answer: Answer) -> bool:
    """Whether the body is text that was to be decoded once more: what it holds was paid for."""
    body = answer.body
    return isinstance(body, str) and (answer.text is not None or body.lstrip().startswith("{"))


def unwrapped(body: Any) -> Any:
    """A body that came as text of JSON, as some gateways write it, decoded."""
    if not is_text_of_json(Answer(body)) or is_dense(body.encode("utf-8", "replace")):
        return body
    try:
        return json.loads(body, strict=False)
    except (ValueError, RecursionError):
        return body


def _shown(body: Any) -> str:
    if isinstance(body, str):
        return clipped(body, _SHOWN_CHARS)
    try:
        return clipped(json.dumps(body), _SHOWN_CHARS)
    except (ValueError, RecursionError):
        return type(body).__name__


def no_answer(message: str) -> Answer:
    """A success that answers nothing; the same request may get an answer."""
    return Answer(kind=NO_ANSWER, message=message, retryable=True)


def read_response(status: int, body: Any) -> Answer:
    """Read an HTTP status and a decoded body."""
    if 200 <= status < 300:
        return Answer(body=body)
    error = body.get("error") if isinstance(body, Mapping) else None
    answer = read_error(error if isinstance(error, Mapping) else {}, fallback=f"http_{status}")
    if is_transient(status) and not answer.retryable:
        return Answer(kind=answer.kind, message=answer.message, retryable=True)
    return answer


def read_error(error: Mapping[str, Any], *, fallback: str) -> Answer:
    kind = clipped(error.get("code") or error.get("type") or fallback, _KIND_CHARS)
    message = clipped(error.get("message") or "", _MESSAGE_CHARS)
    return Answer(kind=kind, message=message, retryable=kind in RETRYABLE)


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
