"""From settings to the values that everything else is handed."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from cache.pool import PoolOptions
from worker.client import QueueOptions
from worker.webhooks import WebhookOptions

if TYPE_CHECKING:
    from pydantic import SecretStr

    from settings import Settings


def pool_options(settings: Settings) -> PoolOptions:
    return PoolOptions(
        connect_timeout_s=settings.redis_connect_timeout_s,
        socket_timeout_s=settings.redis_socket_timeout_s,
        health_check_interval_s=settings.redis_health_check_interval_s,
        max_connections=settings.redis_max_connections,
        retries=settings.redis_retries,
        ca_file=settings.redis_ca_file,
        cert_file=settings.redis_cert_file,
        key_file=settings.redis_key_file,
    )


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
        llm_result_ttl_s=settings.llm_result_ttl_s,
    )


def encryption_key(settings: Settings) -> bytes | None:
    key = settings.webhook_encryption_key
    return None if key is None else base64.b64decode(key.get_secret_value())


def reveal(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
