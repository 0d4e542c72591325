"""Options of LLM clients and workers: limits of requests, rules for batches, retention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.llm.grouping import LIMITS
from worker.llm.states import OnAmbiguous


@dataclass(frozen=True, slots=True)
class LLMOptions:
    """
    Options of one client. Sizes are bytes, times are seconds, tokens are estimates.

    Args:
        batch_max_tokens: 0 means no limit.
        deadline_margin_s: a request whose deadline is nearer than this is sent as a direct call.
        result_ttl_s, read_result_ttl_s: lifetime of an answer before and after its first read.
        cache_ttl_s: how long an equal request gets a stored answer; 0 means never.
        batch_price_factor: price of a batch token as a share of the full price.
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
    """When a group's waiting requests become a batch. Tokens are estimates; 0 means no limit."""

    max_requests: int
    max_bytes: int
    max_tokens: int
    max_age_ms: int


@dataclass(frozen=True, slots=True)
class Retention:
    """Lifetime of answers in seconds: unread, after the first read, and for equal requests."""

    unread_s: float
    read_s: float
    equal_s: float


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How workers create and poll batches. Times are seconds."""

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
    """The operator's limits of a batch, capped by what the provider accepts."""
    limits = LIMITS[provider]
    return FlushRules(
        max_requests=min(options.batch_max_requests, limits.requests),
        max_bytes=min(options.batch_max_bytes, limits.bytes * 9 // 10),
        max_tokens=options.batch_max_tokens,
        max_age_ms=int(options.batch_max_age_s * 1000),
    )
