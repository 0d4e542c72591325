"""From settings to the values that everything else is handed."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from cache.opening import pool_options
from worker.deps import LLMConfig
from worker.llm.client import flush_rules
from worker.llm.grouping import LIMITS
from worker.llm.rate_policy import RateLimits
from worker.llm.states import OnAmbiguous
from worker.options import QueueOptions
from worker.webhooks.client import WebhookOptions

__all__ = [
    "JOB_MARGIN_S",
    "encryption_key",
    "llm_config",
    "pool_options",
    "queue_options",
    "rate_limits",
    "reveal",
]

if TYPE_CHECKING:
    from pydantic import SecretStr

    from settings import Settings

# Time beyond the HTTP calls of one run for the reads and writes around them.
JOB_MARGIN_S = 5.0


def queue_options(settings: Settings) -> QueueOptions:
    return QueueOptions(
        max_job_bytes=settings.queue_max_job_bytes,
        max_length=settings.queue_max_length,
        max_memory_share=settings.queue_max_memory_share,
        webhooks=WebhookOptions(
            max_bytes=settings.webhook_max_body_bytes,
            deadline_s=settings.webhook_deadline_s,
            replay_rate=settings.webhook_replay_rate,
            on_end=settings.webhook_on_end,
        ),
        webhook_retention_s=settings.webhook_retention_s,
        webhook_encryption_key=encryption_key(settings),
        max_llm_bytes=settings.llm_max_body_bytes,
        llm_batch_max_requests=settings.llm_batch_max_requests,
        llm_batch_max_age_s=settings.llm_batch_max_age_s,
        llm_batch_max_bytes=settings.llm_batch_max_bytes,
        llm_batch_max_tokens=settings.llm_batch_max_tokens,
        llm_deadline_margin_s=settings.llm_deadline_margin_s,
        llm_result_ttl_s=settings.llm_result_ttl_s,
        llm_read_result_ttl_s=settings.llm_read_result_ttl_s,
        llm_cache_ttl_s=settings.llm_cache_ttl_s,
        llm_batch_price_factor=settings.llm_batch_price_factor,
    )


def llm_config(settings: Settings) -> LLMConfig:
    options = queue_options(settings)
    return LLMConfig(
        rules={name: flush_rules(options, name) for name in LIMITS},
        poll_interval_s=settings.llm_poll_interval_s,
        item_max_tries=settings.llm_item_max_tries,
        deadline_margin_s=settings.llm_deadline_margin_s,
        on_ambiguous=OnAmbiguous(settings.llm_on_ambiguous),
        unconfirmed_wait_s=settings.llm_unconfirmed_wait_s,
        webhook_url=settings.llm_webhook_url,
        delete_files=settings.llm_delete_files,
    )


def rate_limits(settings: Settings) -> RateLimits:
    return RateLimits(
        requests_per_minute=settings.llm_requests_per_minute,
        tokens_per_minute=settings.llm_tokens_per_minute,
        max_concurrency=settings.llm_max_concurrency,
        urgent_share=settings.llm_urgent_share,
    )


def encryption_key(settings: Settings) -> bytes | None:
    key = settings.webhook_encryption_key
    return None if key is None else base64.b64decode(key.get_secret_value())


def reveal(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
