"""What a job of ours finds in arq's `ctx`: the stores, the HTTP clients, the clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from worker.client import JobQueue
    from worker.http.client import GuardedClient
    from worker.llm.providers import Provider
    from worker.llm.rate_limits import RateLimiter
    from worker.llm.requests import FlushRules
    from worker.llm.states import OnAmbiguous
    from worker.webhooks.limits import TargetLimits
    from worker.webhooks.policy import RetrySchedule
    from worker.webhooks.secrets import SecretBox

JobContext = Mapping[str, Any]
_KEY = "letta_redis"


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    """
    How webhooks are sent; `secrets` sign those that bring none of their own.

    Of a response `keep_response_bytes` are kept, `max_response_bytes` read.
    """

    secrets: tuple[str, ...] = field(repr=False)
    schedule: RetrySchedule
    timeout_s: float
    limits: TargetLimits
    keep_response_bytes: int = 1024
    max_response_bytes: int = 1_048_576


@dataclass(frozen=True, slots=True)
class LLMConfig:
    """How batches are made and watched. Times are seconds."""

    rules: Mapping[str, FlushRules]
    poll_interval_s: float
    item_max_tries: int
    deadline_margin_s: float
    on_ambiguous: OnAmbiguous
    unconfirmed_wait_s: float
    webhook_url: str | None = None
    delete_files: str = "input"


def _no_checkpoint(_name: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Deps:
    """Built once by worker/app/main.py, put under one key of `ctx`."""

    queue: JobQueue
    http: GuardedClient
    llm_http: httpx.AsyncClient
    secrets: SecretBox
    webhooks: WebhookConfig
    llm: LLMConfig
    providers: Mapping[str, Provider]
    limiters: Mapping[str, RateLimiter]
    now: Callable[[], datetime] = utc_now
    rng: Callable[[], float] = field(default=random.random)
    # Told of every step of a batch that a crash may come behind; fault tests let one come.
    reached: Callable[[str], None] = _no_checkpoint

    @staticmethod
    def of(ctx: JobContext) -> Deps:
        deps: Deps = ctx[_KEY]
        return deps

    @staticmethod
    def find(ctx: JobContext) -> Deps | None:
        return ctx.get(_KEY)

    def put_into(self, ctx: dict[Any, Any]) -> None:
        ctx[_KEY] = self
