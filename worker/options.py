"""What one client of the queue is told: limits and times, as worker/app/wiring.py reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.webhooks.client import WebhookOptions


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """Limits of one client. Sizes are bytes, times seconds, tokens estimates; 0 is no limit."""

    max_job_bytes: int = 1_048_576
    max_length: int = 0
    max_memory_share: float = 0.0
    webhooks: WebhookOptions = field(default_factory=WebhookOptions)
    webhook_retention_s: float = 604_800.0
    webhook_encryption_key: bytes | None = field(default=None, repr=False)
    max_llm_bytes: int = 1_048_576
    llm_batch_max_requests: int = 500
    llm_batch_max_bytes: int = 100_000_000
    llm_batch_max_tokens: int = 0
    llm_batch_max_age_s: float = 60.0
    llm_deadline_margin_s: float = 120.0
    llm_result_ttl_s: float = 259_200.0
    llm_read_result_ttl_s: float = 3600.0
    llm_cache_ttl_s: float = 0.0
    llm_batch_price_factor: float = 0.5
