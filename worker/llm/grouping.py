"""
Checks LLM requests and decides which of them may share a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from worker.errors import InvalidArgument, PayloadTooLarge, UnknownProvider
from worker.queue.arguments import key_problem

# Provider -> endpoint -> the body's field that contains the input.
ENDPOINTS: Mapping[str, Mapping[str, str]] = {
    "openai": {
        "/v1/chat/completions": "messages",
        "/v1/responses": "input",
        "/v1/embeddings": "input",
    },
    "anthropic": {"/v1/messages": "messages"},
}
# Fields of a body that limit the length of the answer.
_OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# In the order of the keys: a model writes the fields of a schema in the order that it was given.
_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
# English text has about four bytes per token; other languages fewer, JSON syntax more.
_BYTES_PER_TOKEN = 4
# More than any model returns. The server sums estimates, so each is bounded.
MOST_OUTPUT_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a provider accepts in one batch."""

    requests: int
    bytes: int


LIMITS: Mapping[str, BatchLimits] = {
    "openai": BatchLimits(50_000, 200_000_000),
    "anthropic": BatchLimits(100_000, 256_000_000),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that may share a batch: a provider accepts one endpoint and model per file."""

    provider: str
    endpoint: str
    model: str

    @property
    def id(self) -> str:
        return _group_id(self.provider, self.endpoint, self.model)

    @property
    def path(self) -> str:
        """The endpoint below a base URL that ends in /v1."""
        return self.endpoint.removeprefix("/v1")


@lru_cache(maxsize=1024)
def _group_id(provider: str, endpoint: str, model: str) -> str:
    text = json.dumps([provider, endpoint, model])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """
    A checked request. `body` is compact JSON with its keys in the caller's order.

    Requests are equal if these bytes are.

    `tokens` is an estimate of input and output together.
    """

    group: Group
    body: bytes
    tokens: int

    def digest(self, group_id: str) -> str:
        return hashlib.sha256(group_id.encode() + self.body).hexdigest()


def full_endpoint(endpoint: str) -> str:
    """The endpoint in full: `chat/completions` -> `/v1/chat/completions`."""
    return "/v1/" + endpoint.strip("/").removeprefix("v1/")


@lru_cache(maxsize=64)
def check_endpoint(provider: str, endpoint: str) -> str:
    """
    The endpoint in full.

    Raises:
        UnknownProvider, InvalidArgument: the message lists the known ones.
    """
    if provider not in ENDPOINTS:
        raise UnknownProvider(f"unknown provider {provider!r}; known: {', '.join(ENDPOINTS)}")
    full = full_endpoint(endpoint)
    if full not in ENDPOINTS[provider]:
        known = ", ".join(ENDPOINTS[provider])
        raise InvalidArgument(f"{provider} has no endpoint {endpoint!r}; known: {known}")
    return full


def checked_group(provider: Any, endpoint: Any, model: Any) -> Group:
    """
    A group from a job's arguments, or read back from the server.

    Raises:
        UnknownProvider, InvalidArgument: no accepted request can belong to it.
    """
    if not isinstance(provider, str) or not isinstance(endpoint, str):
        raise InvalidArgument("a group's provider and endpoint are text")
    if check_endpoint(provider, endpoint) != endpoint:
        raise InvalidArgument(f"{endpoint!r} is not an endpoint of {provider}")
    return Group(provider, endpoint, _check_model(model, "the group's model"))


def _check_model(model: Any, what: str) -> str:
    if not isinstance(model, str) or not 0 < len(model) <= 256:
        raise InvalidArgument(f"{what} must be a name of 1-256 characters")
    return model


def check_request(
    body: Mapping[str, Any], *, provider: str, endpoint: str, max_bytes: int
) -> LLMRequest:
    """
    Check a request against its provider's rules before anything is stored.

    Raises:
        UnknownProvider, InvalidArgument, PayloadTooLarge: the message names the field.
    """
    full = check_endpoint(provider, endpoint)
    if not isinstance(body, (dict, Mapping)):  # a dict passes without a call of its own
        raise InvalidArgument("the body must be a mapping")
    model = _check_model(body.get("model"), "body['model']")
    if not body.get(ENDPOINTS[provider][full]):
        raise InvalidArgument(f"body['{ENDPOINTS[provider][full]}'] is missing or empty")
    if body.get("stream"):
        raise InvalidArgument("body['stream'] cannot be true: a batch returns complete answers")
    if provider == "anthropic" and not _is_count(body.get("max_tokens")):
        raise InvalidArgument("body['max_tokens'] must be a whole number above 0 for anthropic")
    for name in _OUTPUT_LIMITS:
        if name in body and _is_excessive(body[name]):
            raise InvalidArgument(f"body['{name}'] must be at most {MOST_OUTPUT_TOKENS}")
    data = _encoded(body)
    if len(data) > max_bytes:
        raise PayloadTooLarge("the request body", len(data), max_bytes, "LETTA_LLM_MAX_BODY_BYTES")
    return LLMRequest(Group(provider, full, model), data, estimate_tokens(body, len(data)))


def estimate_tokens(body: Mapping[str, Any], size: int) -> int:
    """Estimate input and output tokens for the limits; for English text it is on the high side."""
    output = 0
    for name in _OUTPUT_LIMITS:
        if name in body and _is_count(body[name]):
            output = int(body[name])
            break
    return size // _BYTES_PER_TOKEN + 1 + output


def most_parts(size: int) -> int:
    """
    How many batches a refused one may be split into while its rejected lines are searched.

    One rejected line needs two batches for each halving; this is enough for eight lines.
    """
    return 16 * max(size - 1, 1).bit_length()


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        data = _compact(body).encode()
        if b"\\ud" in data:  # a lone surrogate makes a provider refuse the whole file
            json.dumps(body, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidArgument(f"the body is not JSON: {exc}") from None
    problem = key_problem(body)
    if problem is not None:
        raise InvalidArgument(f"the body {problem}")
    return data


def _is_excessive(value: Any) -> bool:
    # The comparison is negated so that NaN counts as excessive.
    return isinstance(value, int | float) and not value <= MOST_OUTPUT_TOKENS


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
