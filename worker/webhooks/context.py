"""The dependencies of the webhook jobs: stores, the HTTP client, options, clock and randomness."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from worker.queue.context import JobContext, utc_now
from worker.queue.dead import DeadLetters
from worker.queue.encoder import JobEncoder
from worker.queue.store import QueueStore
from worker.webhooks.attempts import AttemptStore
from worker.webhooks.deliveries import DeliveryStore
from worker.webhooks.options import DeliveryOptions
from worker.webhooks.secrets import DeliverySecrets

if TYPE_CHECKING:
    from worker.http.client import GuardedClient

_KEY = "letta_redis.webhooks"


@dataclass(frozen=True, slots=True)
class WebhookContext:
    """Built once per worker by worker/app/composition.py."""

    attempts: AttemptStore
    deliveries: DeliveryStore
    jobs: QueueStore
    encoder: JobEncoder
    dead: DeadLetters
    http: GuardedClient
    secrets: DeliverySecrets
    options: DeliveryOptions
    now: Callable[[], datetime] = utc_now
    rng: Callable[[], float] = random.random

    @staticmethod
    def of(ctx: JobContext) -> WebhookContext:
        context: WebhookContext = ctx[_KEY]
        return context

    @staticmethod
    def find(ctx: JobContext) -> WebhookContext | None:
        """None in a worker that stopped before its startup ended."""
        return ctx.get(_KEY)

    def put_into(self, ctx: dict[Any, Any]) -> None:
        ctx[_KEY] = self

    async def aclose(self) -> None:
        await self.http.aclose()
