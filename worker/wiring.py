"""From settings to the values that everything else is handed."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from cache.opening import pool_options
from worker.client import QueueOptions
from worker.webhooks import WebhookOptions

__all__ = ["encryption_key", "pool_options", "queue_options", "reveal"]

if TYPE_CHECKING:
    from pydantic import SecretStr

    from settings import Settings


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
