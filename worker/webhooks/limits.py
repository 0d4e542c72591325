"""
What a delivery shares with others: its lane (limits, breaker) and its endpoint (disabling).

An `endpoint_id` names both. Without one, the lane is scheme, host and port, which
is what can be overloaded, and the endpoint is the URL, its query included, which is
what can be gone: `?token=a` that answers 410 says nothing of `?token=b`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}
_MOST_CHARS = 200


@dataclass(frozen=True, slots=True)
class TargetLimits:
    """
    How an endpoint is held back. Times are seconds; 0 switches rate, breaker or disabling off.

    `slot_s`: an attempt's place is free again after this, should its worker die.
    """

    concurrency: int
    rate_per_s: float
    breaker_failures: int
    open_s: float
    open_max_s: float
    disable_after_s: float
    slot_s: float


def target_of(url: str, endpoint_id: str | None) -> str:
    """`https://host:443`, or `id:<endpoint id>`."""
    if endpoint_id is not None:
        return f"id:{endpoint_id}"
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    text = f"{parts.scheme}://{parts.hostname}:{port}"
    return text if len(text) <= _MOST_CHARS else digest(text)


def endpoint_of(url: str, endpoint_id: str | None) -> str:
    """`id:<endpoint id>`, or a digest of the URL without its fragment."""
    if endpoint_id is not None:
        return f"id:{endpoint_id}"
    # A path or a query may hold a token, so that it does not belong in a key's name.
    return digest(url.partition("#")[0])


def order_of(target: str, ordering_key: str) -> str:
    return digest(f"{target}\n{ordering_key}")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
