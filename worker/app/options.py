"""Converts settings into the options of the features. Imports neither arq nor aiohttp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache.opening import pool_options
from worker.llm.grouping import LIMITS
from worker.llm.options import BatchOptions, LLMOptions, flush_rules
from worker.llm.rate_policy import RateLimits
from worker.llm.states import OnAmbiguous
from worker.queue.arguments import require_webhook_url
from worker.queue.options import ConfirmOptions, JobOptions
from worker.webhooks.limits import EndpointLimits
from worker.webhooks.options import DeliveryOptions, WebhookOptions
from worker.webhooks.policy import RetrySchedule

if TYPE_CHECKING:
    from pydantic import SecretStr

    from settings import Settings

__all__ = [
    "JOB_MARGIN_S",
    "QueueOptions",
    "batch_options",
    "delivery_options",
    "pool_options",
    "queue_options",
    "rate_limits",
    "reveal",
]

# Added to the HTTP timeout of a job for its reads and writes of Redis.
JOB_MARGIN_S = 5.0
# Default for attempts at one endpoint; half of a worker's jobs if that is less.
_ENDPOINT_CONCURRENCY = 16
# The same for one host; three quarters of a worker's jobs if that is less.
_HOST_CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """The options of one client, by feature."""

    jobs: JobOptions
    webhooks: WebhookOptions
    llm: LLMOptions


def queue_options(settings: Settings) -> QueueOptions:
    return QueueOptions(
        jobs=JobOptions(
            max_job_bytes=settings.queue_max_job_bytes,
            max_length=settings.queue_max_length,
            max_memory_share=settings.queue_max_memory_share,
            confirm=ConfirmOptions(
                replicas=settings.queue_wait_replicas,
                timeout_s=settings.queue_wait_timeout_s,
                required=settings.queue_wait_required,
            ),
        ),
        webhooks=WebhookOptions(
            max_bytes=settings.webhook_max_body_bytes,
            deadline_s=settings.webhook_deadline_s,
            replay_rate=settings.webhook_replay_rate,
            on_end=settings.webhook_on_end,
            retention_s=settings.webhook_retention_s,
            encryption_keys=reveal(settings.webhook_encryption_key),
        ),
        llm=LLMOptions(
            max_bytes=settings.llm_max_body_bytes,
            batch_max_requests=settings.llm_batch_max_requests,
            batch_max_bytes=settings.llm_batch_max_bytes,
            batch_max_tokens=settings.llm_batch_max_tokens,
            batch_max_age_s=settings.llm_batch_max_age_s,
            deadline_margin_s=settings.llm_deadline_margin_s,
            result_ttl_s=settings.llm_result_ttl_s,
            read_result_ttl_s=settings.llm_read_result_ttl_s,
            cache_ttl_s=settings.llm_cache_ttl_s,
            batch_price_factor=settings.llm_batch_price_factor,
        ),
    )


def delivery_options(settings: Settings) -> DeliveryOptions:
    secrets = reveal(settings.webhook_secret)
    base_s = settings.webhook_retry_base_s
    delays = [float(part) for part in settings.webhook_retry_delays_s.split()]
    return DeliveryOptions(
        secrets=tuple(secrets.split()) if secrets else (),
        bearers=_bearers(settings),
        schedule=RetrySchedule(
            max_attempts=settings.webhook_max_attempts,
            base_s=base_s or delays[0],
            cap_s=settings.webhook_retry_cap_s,
            delays_s=() if base_s else tuple(delays),
            jitter=settings.webhook_retry_jitter,
            retry_after_max_s=settings.webhook_retry_after_max_s,
        ),
        timeout_s=settings.webhook_timeout_s,
        limits=EndpointLimits(
            concurrency=_endpoint_concurrency(settings),
            host_concurrency=_host_concurrency(settings),
            rate_per_s=settings.webhook_endpoint_rate,
            breaker_failures=settings.webhook_breaker_failures,
            open_s=settings.webhook_breaker_open_s,
            open_max_s=settings.webhook_breaker_open_max_s,
            disable_after_s=settings.webhook_disable_after_s,
            # Longer than the job's timeout, so that a slot outlives its attempt.
            slot_s=settings.webhook_timeout_s + 2 * JOB_MARGIN_S,
        ),
        keep_response_bytes=settings.webhook_keep_response_bytes,
        max_response_bytes=settings.webhook_max_response_bytes,
    )


def _bearers(settings: Settings) -> dict[str, str]:
    """The tokens by the URLs as deliveries hold them."""
    pairs = [part.partition("@") for part in (reveal(settings.webhook_bearers) or "").split()]
    return {require_webhook_url(url, "LETTA_WEBHOOK_BEARERS"): token for token, _, url in pairs}


def _endpoint_concurrency(settings: Settings) -> int:
    half = max(1, settings.worker_max_jobs // 2)
    return settings.webhook_endpoint_concurrency or min(_ENDPOINT_CONCURRENCY, half)


def _host_concurrency(settings: Settings) -> int:
    chosen = settings.webhook_endpoint_concurrency or 0
    most = max(1, min(_HOST_CONCURRENCY, settings.worker_max_jobs * 3 // 4))
    # One endpoint alone gets two thirds of its host's slots.
    return settings.webhook_host_concurrency or max(most, math.ceil(chosen * 1.5))


def batch_options(settings: Settings) -> BatchOptions:
    options = queue_options(settings).llm
    return BatchOptions(
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


def reveal(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
