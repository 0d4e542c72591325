"""Checks the custom headers of a webhook, and decides which of them are secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from worker.errors import InvalidArgument

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
# A receiver strips outer spaces, and reads other characters in its own encoding.
_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")
_LONGEST_VALUE = 2048
_MOST = 32
# Headers of the transport, and those that identify the sender.
_RESERVED = frozenset(
    {
        "accept-encoding", "connection", "content-length", "expect", "host", "keep-alive",
        "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding",
        "upgrade", "user-agent", "webhook-event-type", "webhook-id", "webhook-signature",
        "webhook-timestamp",
    }
)  # fmt: skip
# Stored in clear. Any other header may contain a key, whatever its name.
_HARMLESS = frozenset(
    {
        "accept", "accept-charset", "accept-language", "cache-control", "content-encoding",
        "content-language", "content-type", "correlation-id", "date", "idempotency-key",
        "if-match", "if-none-match", "pragma", "prefer", "priority", "request-id", "traceparent",
        "tracestate", "x-b3-parentspanid", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid",
        "x-content-type-options", "x-correlation-id", "x-environment", "x-event-id",
        "x-event-type", "x-idempotency-key", "x-request-id", "x-source", "x-trace-id", "x-version",
    }
)  # fmt: skip


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """
    Return the headers with names in lower case.

    Raises:
        InvalidArgument: too many headers, a reserved name or one given twice, or a value
            that does not arrive as it is.
    """
    if not isinstance(headers, Mapping):
        raise InvalidArgument(f"headers must be a mapping, not {type(headers).__name__}")
    if len(headers) > _MOST:
        raise InvalidArgument(f"at most {_MOST} headers, not {len(headers)}")
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgument(f"headers: {str(name)[:100]!r} is not a valid header name")
        lower = name.lower()
        if lower in _RESERVED:
            raise InvalidArgument(f"headers: {name!r} is reserved; remove it")
        if not is_value(value):
            # The value may be a secret, so it is not repeated.
            raise InvalidArgument(
                f"headers: the value of {name!r} is not one line of ASCII without outer spaces"
            )
        if lower in found:
            raise InvalidArgument(f"headers: {name!r} is given twice; names ignore case")
        found[lower] = value
    return found


def is_value(value: object) -> bool:
    """Whether every receiver reads it as it is: one line of ASCII without outer spaces."""
    return (
        isinstance(value, str)
        and len(value) <= _LONGEST_VALUE
        and _VALUE.fullmatch(value) is not None
    )


def is_secret(name: str) -> bool:
    """Whether the header must be stored encrypted: every header except the harmless ones."""
    return name.lower() not in _HARMLESS
