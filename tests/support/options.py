"""Options as the settings make them, with what a test changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from settings import Settings
from worker.app.options import QueueOptions, delivery_options, queue_options, rate_limits
from worker.llm.rate_policy import RateLimits
from worker.webhooks.limits import EndpointLimits
from worker.webhooks.policy import RetrySchedule


def options_of(**settings: Any) -> QueueOptions:
    """A client's options; without settings named here its queue has no limits."""
    unlimited = {"queue_max_length": 0, "queue_max_memory_share": 0.0}
    return queue_options(Settings(**{**unlimited, **settings}))


def endpoint_limits(**changes: Any) -> EndpointLimits:
    """The standard limits; a host has as many slots as anybody asks for unless a test says so."""
    changes.setdefault("host_concurrency", 10_000)
    return replace(delivery_options(Settings()).limits, **changes)


def retry_schedule(**changes: Any) -> RetrySchedule:
    """The standard delays; with a `base_s` they double from it."""
    standard = delivery_options(Settings()).schedule
    if "base_s" in changes:
        changes.setdefault("delays_s", ())
    return replace(standard, **changes)


def call_limits(**changes: Any) -> RateLimits:
    return replace(rate_limits(Settings()), **changes)
