"""
Names the endpoint and the host that deliveries share, and their limits.

An endpoint is the URL with its query, or what an `endpoint_id` names. It has its own
limits, breaker and order, and can be gone: a 410 for `?token=a` does not concern
`?token=b`. A host has many endpoints of different customers (Slack, Zapier), which
share its slots.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from worker.http.urls import read_url

_MOST_CHARS = 200


@dataclass(frozen=True, slots=True)
class EndpointLimits:
    """
    The limits of one endpoint. Times are seconds; 0 turns rate, breaker or disabling off.

    `host_concurrency`: attempts at all endpoints of its host together. `slot_s`: the lease
    of an attempt's slot; after it the slot of a dead worker is free.
    """

    concurrency: int
    host_concurrency: int
    rate_per_s: float
    breaker_failures: int
    open_s: float
    open_max_s: float
    disable_after_s: float
    slot_s: float


def endpoint_of(url: str, endpoint_id: str | None) -> str:
    """`id:<endpoint id>`, or a digest of the URL without its fragment."""
    if endpoint_id is not None:
        return f"id:{endpoint_id}"
    # A digest, because path or query may contain a token, and key names are visible.
    return digest(url.partition("#")[0])


def host_of(url: str) -> str:
    """`host:port` of a URL."""
    text = read_url(url).server
    return text if len(text) <= _MOST_CHARS else digest(text)


def order_of(endpoint: str, ordering_key: str) -> str:
    return digest(f"{endpoint}\n{ordering_key}")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
