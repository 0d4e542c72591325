"""The dependencies of the LLM jobs: stores, clients, providers, options, clock and randomness."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx

from worker.keys import QueueKeys
from worker.llm.batch_client import Batches
from worker.llm.batches import BatchStore
from worker.llm.options import BatchOptions
from worker.llm.orphans import Orphans
from worker.llm.prepared import PreparedJobs
from worker.llm.rate_limits import RateLimiter
from worker.llm.requests import RequestStore
from worker.queue.client import Jobs
from worker.queue.context import JobContext, utc_now
from worker.queue.dead import DeadLetters
from worker.webhooks.client import Webhooks

if TYPE_CHECKING:
    from worker.llm.providers import Provider

_KEY = "letta_redis.llm"


def _no_checkpoint(_name: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class LLMContext:
    """Built once per worker by worker/app/composition.py."""

    keys: QueueKeys
    requests: RequestStore
    batches: BatchStore
    orphans: Orphans
    prepared: PreparedJobs
    batch_client: Batches
    jobs: Jobs
    dead: DeadLetters
    webhooks: Webhooks
    http: httpx.AsyncClient
    providers: Mapping[str, Provider]
    limiters: Mapping[str, RateLimiter]
    options: BatchOptions
    now: Callable[[], datetime] = utc_now
    rng: Callable[[], float] = random.random
    # Called after every step of a batch; fault tests crash the worker there.
    reached: Callable[[str], None] = _no_checkpoint

    @staticmethod
    def of(ctx: JobContext) -> LLMContext:
        context: LLMContext = ctx[_KEY]
        return context

    @staticmethod
    def find(ctx: JobContext) -> LLMContext | None:
        """None in a worker that stopped before its startup ended."""
        return ctx.get(_KEY)

    def put_into(self, ctx: dict[Any, Any]) -> None:
        ctx[_KEY] = self

    async def aclose(self) -> None:
        await self.http.aclose()
