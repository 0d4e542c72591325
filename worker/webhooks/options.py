"""What clients may send as webhooks, and how workers attempt them. Sizes are bytes, times seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.webhooks.limits import TargetLimits
from worker.webhooks.policy import RetrySchedule


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """
    What one client may send.

    Args:
        deadline_s: of a delivery that names no deadline.
        replay_rate: deliveries a second that `replay_many` sends again.
        on_end: function of deliveries that name none; "" for no function.
        retention_s: an ended delivery is kept this long.
        encryption_key: seals secrets of single webhooks; None refuses such secrets.
    """

    max_bytes: int
    deadline_s: float
    replay_rate: float
    on_end: str
    retention_s: float
    encryption_key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """
    How workers attempt deliveries; `secrets` sign those that bring none of their own.

    Of a response `keep_response_bytes` are kept, `max_response_bytes` read.
    """

    secrets: tuple[str, ...] = field(repr=False)
    schedule: RetrySchedule
    timeout_s: float
    limits: TargetLimits
    keep_response_bytes: int
    max_response_bytes: int
