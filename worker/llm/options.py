"""What clients may hand in, when requests become a batch, and how workers carry batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.llm.grouping import LIMITS
from worker.llm.states import OnAmbiguous


@dataclass(frozen=True, slots=True)
class LLMOptions:
    """
    Of one client. Sizes are bytes, times seconds, tokens estimates.

    Args:
        batch_max_tokens: 0 is no limit.
        deadline_margin_s: a request whose deadline is nearer than this goes by itself.
        result_ttl_s, read_result_ttl_s: an answer is kept this long unread, and once read.
        cache_ttl_s: an equal request gets a kept answer for this long; 0 never.
        batch_price_factor: price of a token in a batch, as a share of the full price.
    """

    max_bytes: int
    batch_max_requests: int
    batch_max_bytes: int
    batch_max_tokens: int
    batch_max_age_s: float
    deadline_margin_s: float
    result_ttl_s: float
    read_result_ttl_s: float
    cache_ttl_s: float
    batch_price_factor: float


@dataclass(frozen=True, slots=True)
class FlushRules:
    """When a group's waiting requests become a batch. Tokens are estimates; 0 is no limit."""

    max_requests: int
    max_bytes: int
    max_tokens: int
    max_age_ms: int


@dataclass(frozen=True, slots=True)
class Retention:
    """How long answers are kept, seconds: unread, after the first read, for equal requests."""

    unread_s: float
    read_s: float
    equal_s: float


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How workers make batches and watch them. Times are seconds."""

    rules: Mapping[str, FlushRules]
    poll_interval_s: float
    item_max_tries: int
    deadline_margin_s: float
    on_ambiguous: OnAmbiguous
    unconfirmed_wait_s: float
    webhook_url: str | None
    delete_files: str


def retention(options: LLMOptions) -> Retention:
    return Retention(options.result_ttl_s, options.read_result_ttl_s, options.cache_ttl_s)


def flush_rules(options: LLMOptions, provider: str) -> FlushRules:
    """When a group is full: what the operator set, within what the provider takes."""
    limits = LIMITS[provider]
    return FlushRules(
        max_requests=min(options.batch_max_requests, limits.requests),
        max_bytes=min(options.batch_max_bytes, limits.bytes * 9 // 10),
        max_tokens=options.batch_max_tokens,
        max_age_ms=int(options.batch_max_age_s * 1000),
    )
