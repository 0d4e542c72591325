"""
Names the target (limits, breaker) and the endpoint (disabling) that a delivery shares with others.

An `endpoint_id` names both. Without one, the target is scheme, host and port, which
can be overloaded. The endpoint is the URL with its query, which can be gone: a 410
for `?token=a` does not concern `?token=b`.
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
    The limits of one target. Times are seconds; 0 turns rate, breaker or disabling off.

    `slot_s`: the lease of an attempt's slot; after it the slot of a dead worker is free.
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
    # A digest, because path or query may contain a token, and key names are visible.
    return digest(url.partition("#")[0])


def order_of(target: str, ordering_key: str) -> str:
    return digest(f"{target}\n{ordering_key}")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
