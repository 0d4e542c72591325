"""Which headers of its own a webhook may carry, and which of them are secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from worker.errors import InvalidArgument

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]{0,2048}")
_MOST = 32
# The transport's own, and those that say who sent it.
_RESERVED = frozenset(
    {
        "accept-encoding", "connection", "content-length", "expect", "host", "keep-alive",
        "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding",
        "upgrade", "user-agent", "webhook-event-type", "webhook-id", "webhook-signature",
        "webhook-timestamp",
    }
)  # fmt: skip
# Whoever reads the server may read these. Any other may carry a key, whatever its name.
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
    The headers with names in lower case.

    Raises:
        InvalidArgument: too many, a reserved name, or what HTTP does not allow.
    """
    if not isinstance(headers, Mapping):
        raise InvalidArgument(f"headers must be a mapping, not {type(headers).__name__}")
    if len(headers) > _MOST:
        raise InvalidArgument(f"at most {_MOST} headers, not {len(headers)}")
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgument(f"headers: {str(name)[:100]!r} is not the name of a header")
        lower = name.lower()
        if lower in _RESERVED:
            raise InvalidArgument(f"headers: {name!r} is not the caller's to set")
        if not is_value(value):
            # The value may be a secret, so it is not repeated.
            raise InvalidArgument(f"headers: the value of {name!r} is not text of one line")
        found[lower] = value
    return found


def is_value(value: object) -> bool:
    """Whether a header may have this value: text of one line that HTTP can carry."""
    return isinstance(value, str) and _VALUE.fullmatch(value) is not None


def is_secret(name: str) -> bool:
    """Whether a header may carry what must not be stored in clear: all but the harmless ones."""
    return name.lower() not in _HARMLESS
