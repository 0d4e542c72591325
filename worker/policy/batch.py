"""
LLM requests: what is accepted, which may share a batch, and what an item's answer means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import InvalidArgument, PayloadTooLarge, UnknownProvider

# Provider -> endpoint -> the field of the body that carries the input.
ENDPOINTS: Mapping[str, Mapping[str, str]] = {
    "openai": {
        "/v1/chat/completions": "messages",
        "/v1/responses": "input",
        "/v1/embeddings": "input",
    },
}


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that may travel in one batch: a provider takes one endpoint and model a file."""

    provider: str
    endpoint: str
    model: str

    @property
    def id(self) -> str:
        text = json.dumps([self.provider, self.endpoint, self.model])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def path(self) -> str:
        """The endpoint below a base URL that ends in /v1."""
        return self.endpoint.removeprefix("/v1")


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """A checked request: `body` is canonical JSON, so equal requests have equal bytes."""

    group: Group
    body: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.group.id.encode() + self.body).hexdigest()


def check_request(
    body: Mapping[str, Any], *, provider: str, endpoint: str, max_bytes: int
) -> LLMRequest:
    """
    Check a request by its provider's rules before anything is stored.

    Raises:
        UnknownProvider, InvalidArgument, PayloadTooLarge: the message names the field.
    """
    if provider not in ENDPOINTS:
        raise UnknownProvider(f"unknown provider {provider!r}; known: {', '.join(ENDPOINTS)}")
    full = "/v1/" + endpoint.strip("/").removeprefix("v1/")
    if full not in ENDPOINTS[provider]:
        known = ", ".join(ENDPOINTS[provider])
        raise InvalidArgument(f"{provider} has no endpoint {endpoint!r}; known: {known}")
    if not isinstance(body, Mapping):
        raise InvalidArgument("the body must be a mapping")
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 256:
        raise InvalidArgument("body['model'] must be a name of 1-256 characters")
    if not body.get(ENDPOINTS[provider][full]):
        raise InvalidArgument(f"body['{ENDPOINTS[provider][full]}'] is missing or empty")
    if body.get("stream"):
        raise InvalidArgument("body['stream'] cannot be true: a batch's answer comes whole")
    try:
        data = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidArgument(f"the body is not JSON: {exc}") from None
    if len(data) > max_bytes:
        raise PayloadTooLarge("the request body", len(data), max_bytes, "LETTA_LLM_MAX_BODY_BYTES")
    return LLMRequest(Group(provider, full, model), data)


@dataclass(frozen=True, slots=True)
class Answer:
    """One item's end: the provider's response body, or an error's kind and message."""

    body: Any = None
    kind: str = ""
    message: str = ""

    @property
    def ok(self) -> bool:
        return not self.kind


def read_item(item: Mapping[str, Any]) -> Answer:
    """A line of a batch's output or error file -> its answer."""
    error = item.get("error")
    if isinstance(error, Mapping):
        return Answer(
            kind=str(error.get("code") or "error"), message=str(error.get("message") or "")
        )
    response = item.get("response")
    if not isinstance(response, Mapping):
        return Answer(
            kind="malformed", message="the provider's line has neither response nor error"
        )
    return read_response(int(response.get("status_code") or 0), response.get("body"))


def read_response(status: int, body: Any) -> Answer:
    """An HTTP status and decoded body -> its answer."""
    if 200 <= status < 300:
        return Answer(body=body)
    error = body.get("error") if isinstance(body, Mapping) else None
    if isinstance(error, Mapping):
        kind = str(error.get("code") or error.get("type") or f"http_{status}")
        return Answer(kind=kind, message=str(error.get("message") or ""))
    return Answer(kind=f"http_{status}", message="")


def is_transient(status: int) -> bool:
    """Statuses after which the same request may succeed."""
    return status in {408, 409, 425, 429, 529} or status >= 500
