"""Options of webhook clients and workers. Sizes are bytes, times are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.webhooks.limits import EndpointLimits
from worker.webhooks.policy import RetrySchedule


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """
    Options of one client.

    Args:
        deadline_s: deadline of a delivery without its own.
        replay_rate: deliveries per second that `replay_many` sends.
        on_end: function of deliveries without their own; "" for none.
        retention_s: how long an ended delivery is kept.
        encryption_keys: encrypt secrets of single webhooks; without it they are refused.
    """

    max_bytes: int
    deadline_s: float
    replay_rate: float
    on_end: str
    retention_s: float
    encryption_keys: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """
    How workers attempt deliveries; `secrets` sign deliveries without their own.

    `bearers` are the tokens of URLs, for deliveries without an authorization of their own.
    At most `max_response_bytes` of a response are read, and `keep_response_bytes` stored.
    """

    secrets: tuple[str, ...] = field(repr=False)
    bearers: Mapping[str, str] = field(repr=False)
    schedule: RetrySchedule
    timeout_s: float
    limits: EndpointLimits
    keep_response_bytes: int
    max_response_bytes: int
