"""
Builds the features over one Redis client: stores, client objects and the contexts of the jobs.

It is the only place that builds them. Clients need neither arq nor aiohttp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache import Keyring
from worker.app.egress import build_llm_http, build_webhook_http
from worker.app.options import (
    JOB_MARGIN_S,
    QueueOptions,
    batch_options,
    delivery_options,
    queue_options,
    rate_limits,
    reveal,
)
from worker.client import JobQueue
from worker.keys import QueueKeys
from worker.llm.answer_subscriber import AnswerSubscriber
from worker.llm.batch_client import Batches
from worker.llm.batches import BatchStore
from worker.llm.client import LLMRequests
from worker.llm.context import LLMContext
from worker.llm.grouping import LIMITS
from worker.llm.options import retention
from worker.llm.orphans import Orphans
from worker.llm.prepared import PreparedJobs
from worker.llm.rate_limits import RateLimiter
from worker.llm.requests import RequestStore
from worker.queue.admission import MemoryGuard
from worker.queue.client import Jobs
from worker.queue.confirmation import Confirmations
from worker.queue.dead import DeadLetters
from worker.queue.encoder import JobEncoder
from worker.queue.schedules import ScheduleStore
from worker.queue.store import QueueStore
from worker.webhooks.attempts import AttemptStore
from worker.webhooks.client import Webhooks
from worker.webhooks.context import WebhookContext
from worker.webhooks.deliveries import DeliveryStore
from worker.webhooks.endpoints import EndpointStore
from worker.webhooks.secrets import DeliverySecrets
from worker.webhooks.sending import Composer

if TYPE_CHECKING:
    from settings import Settings


@dataclass(frozen=True, slots=True)
class Stores:
    """The objects that the features share over one Redis client."""

    client: Any
    keys: QueueKeys
    jobs: QueueStore
    schedules: ScheduleStore
    dead: DeadLetters
    encoder: JobEncoder
    memory: MemoryGuard
    confirmations: Confirmations
    secrets: DeliverySecrets
    deliveries: DeliveryStore
    endpoints: EndpointStore
    attempts: AttemptStore
    requests: RequestStore
    batches: BatchStore
    orphans: Orphans
    prepared: PreparedJobs


def build_stores(client: Any, options: QueueOptions, keys: QueueKeys | None = None) -> Stores:
    """Build the stores without connecting; only tests pass other `keys`."""
    keys = keys or QueueKeys.of(client)
    sealing = options.webhooks.encryption_keys
    secrets = DeliverySecrets(Keyring.parse(sealing) if sealing else None)
    encoder = JobEncoder(max_bytes=options.jobs.max_job_bytes)
    return Stores(
        client=client,
        keys=keys,
        jobs=QueueStore(client, keys),
        schedules=ScheduleStore(client, keys),
        dead=DeadLetters(client, keys),
        encoder=encoder,
        memory=MemoryGuard(client, keys.queue(), share=options.jobs.max_memory_share),
        confirmations=Confirmations(client, keys, options.jobs.confirm),
        secrets=secrets,
        deliveries=DeliveryStore(client, keys, secrets),
        endpoints=EndpointStore(client, keys, secrets),
        attempts=AttemptStore(client, keys, retention_s=options.webhooks.retention_s),
        requests=RequestStore(
            client, keys, retention(options.llm), most_jobs=options.jobs.max_length
        ),
        batches=BatchStore(client, keys),
        orphans=Orphans(client, keys),
        prepared=PreparedJobs(encoder, secrets),
    )


def build_queue(stores: Stores, options: QueueOptions) -> JobQueue:
    """Build the client for services."""
    jobs = build_jobs(stores, options)
    llm = LLMRequests(
        stores.keys,
        stores.requests,
        build_batches(stores, options),
        AnswerSubscriber(stores.client, stores.keys.llm_answered),
        jobs=jobs,
        prepared=stores.prepared,
        memory=stores.memory,
        confirmations=stores.confirmations,
        options=options.llm,
    )
    return JobQueue(jobs, build_webhooks(stores, options), llm, stores.dead)


def build_jobs(stores: Stores, options: QueueOptions) -> Jobs:
    return Jobs(
        stores.jobs,
        stores.schedules,
        stores.encoder,
        stores.memory,
        stores.confirmations,
        max_length=options.jobs.max_length,
    )


def build_webhooks(stores: Stores, options: QueueOptions) -> Webhooks:
    return Webhooks(
        stores.keys,
        stores.deliveries,
        stores.endpoints,
        composer=Composer(stores.secrets, options.webhooks),
        encoder=stores.encoder,
        memory=stores.memory,
        confirmations=stores.confirmations,
        options=options.webhooks,
    )


def build_batches(stores: Stores, options: QueueOptions) -> Batches:
    return Batches(
        stores.keys,
        stores.batches,
        stores.requests,
        stores.prepared,
        price_factor=options.llm.batch_price_factor,
    )


def build_webhook_context(settings: Settings, stores: Stores) -> WebhookContext:
    """
    Build the context of the webhook jobs, with its own HTTP client.

    Raises:
        settings.SettingsError: a certificate file or the name of an allowed host cannot be used.
    """
    return WebhookContext(
        attempts=stores.attempts,
        deliveries=stores.deliveries,
        jobs=stores.jobs,
        encoder=stores.encoder,
        dead=stores.dead,
        http=build_webhook_http(settings),
        secrets=stores.secrets,
        options=delivery_options(settings),
    )


def build_llm_context(settings: Settings, stores: Stores) -> LLMContext:
    """Build the context of the LLM jobs, with its own HTTP client."""
    from worker.llm.providers import AnthropicProvider, OpenAIProvider

    options = queue_options(settings)
    http = build_llm_http(settings)
    openai = OpenAIProvider(
        http,
        base_url=settings.openai_base_url,
        api_key=reveal(settings.openai_api_key),
        timeout_s=settings.llm_timeout_s,
        max_bytes=settings.llm_max_response_bytes,
    )
    anthropic = AnthropicProvider(
        http,
        base_url=settings.anthropic_base_url,
        api_key=reveal(settings.anthropic_api_key),
        timeout_s=settings.llm_timeout_s,
        max_bytes=settings.llm_max_response_bytes,
    )
    limits, lease_s = rate_limits(settings), settings.llm_timeout_s + JOB_MARGIN_S
    return LLMContext(
        keys=stores.keys,
        requests=stores.requests,
        batches=stores.batches,
        orphans=stores.orphans,
        prepared=stores.prepared,
        batch_client=build_batches(stores, options),
        jobs=build_jobs(stores, options),
        dead=stores.dead,
        webhooks=build_webhooks(stores, options),
        http=http,
        providers={"openai": openai, "anthropic": anthropic},
        limiters={
            name: RateLimiter(stores.client, stores.keys, name, limits, lease_s=lease_s)
            for name in LIMITS
        },
        options=batch_options(settings),
    )
