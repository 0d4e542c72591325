"""
Starts a worker, for `arq worker.WorkerSettings` and for a process of `letta-workers run`.

Both run the same worker: functions.py lists its jobs, composition.py builds what
they need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cache.connection import embedded
from cache.connection.pool import build_client, open_pool
from cache.connection.readiness import wait_until_ready
from cache.connection.urls import parse_url, redacted
from cache.encoding import codec
from cache.errors import CacheError, UnsupportedRedisURL
from cache.logs import get_logger
from settings import Settings, SettingsError, get_settings
from worker.app import composition
from worker.app.arq_client import WorkerRedis, arq_redis_settings
from worker.app.functions import build_crons, build_functions
from worker.app.options import pool_options, queue_options
from worker.engine import EngineOptions, RetryPolicy, new_worker_id
from worker.engine.bridge import ManagedEngine, settings_class, worker_from
from worker.engine.preflight import require_usable
from worker.errors import UnsafeServer
from worker.keys import QUEUE_TAG, QueueKeys
from worker.llm.context import LLMContext
from worker.logs import configure_logging
from worker.process.child import ChildOptions, ManagedWorker, serve
from worker.process.loop import run_loop
from worker.queue.options import ConfirmOptions
from worker.webhooks.context import WebhookContext

log = get_logger(__name__)

_HEALTH_INTERVAL_S = 5


def build_worker_settings(settings: Settings | None = None) -> type:
    """
    Build the class that arq reads. It inherits nothing, because arq ignores inherited attributes.

    An embedded:// server starts here and ends with this process.

    Raises:
        settings.SettingsError: a setting is wrong, or names a function that cannot be loaded.
    """
    chosen = settings or get_settings()
    url = chosen.redis_url
    if parse_url(url).kind == "embedded":
        url = embedded.acquire(url)
    client = build_client(
        url,
        pool_options(chosen),
        name="letta-redis-worker",
        client_class=WorkerRedis,
        tag=QUEUE_TAG,
        job_serializer=codec.encode_exact,
        job_deserializer=codec.decode,
    )
    keys = QueueKeys.of(client)
    worker_id = new_worker_id()
    attributes = {
        "functions": build_functions(chosen),
        "cron_jobs": build_crons(chosen),
        "queue_name": keys.queue(),
        "redis_pool": client,
        # `arq --check` builds its own client from this.
        "redis_settings": arq_redis_settings(parse_url(url), chosen),
        "health_check_interval": _HEALTH_INTERVAL_S,
        "health_check_key": keys.health,
        "job_serializer": codec.encode,
        "job_deserializer": codec.decode,
        "max_jobs": chosen.worker_max_jobs,
        "job_timeout": chosen.worker_job_timeout_s,
        "job_completion_wait": int(chosen.worker_shutdown_grace_s),
        "keep_result": chosen.worker_keep_result_s,
        "allow_abort_jobs": True,
        "log_results": False,
        "on_startup": _startup(chosen),
        "on_shutdown": _shutdown,
    }
    engine = {"options": engine_options(chosen), "worker_id": worker_id, "prefix": keys.prefix}
    return settings_class(attributes, engine=engine)


def _startup(settings: Settings) -> Callable[[dict[Any, Any]], Any]:
    async def startup(ctx: dict[Any, Any]) -> None:
        configure_logging(settings.worker_log_level, settings.worker_log_format)
        options = queue_options(settings)
        # What jobs enqueue follows from them: if it is lost, so is their end, and they run again.
        options = replace(options, jobs=replace(options.jobs, confirm=ConfirmOptions()))
        stores = composition.build_stores(ctx["redis"], options)
        composition.build_webhook_context(settings, stores).put_into(ctx)
        composition.build_llm_context(settings, stores).put_into(ctx)
        log.info("worker.started", worker_id=ctx["worker_id"], max_jobs=settings.worker_max_jobs)

    return startup


async def _shutdown(ctx: dict[Any, Any]) -> None:
    webhooks, llm = WebhookContext.find(ctx), LLMContext.find(ctx)
    if webhooks is None or llm is None:  # stopped before the startup ended
        return
    await webhooks.aclose()
    await llm.aclose()
    log.info("worker.stopped", worker_id=ctx["worker_id"])


def build_worker(settings: Settings, foreign: type | None = None) -> ManagedWorker:
    """
    Build a worker, with everything it needs, to `run()` on the running event loop.

    `foreign` is any arq settings class; it names its own server.
    """
    found = foreign or build_worker_settings(settings)
    return ManagedEngine(worker_from(found, handle_signals=False))


def run_child(settings: Settings, foreign: type | None = None) -> int:
    """Run one worker process. Return its exit code (worker/process/child.py)."""
    configure_logging(settings.worker_log_level, settings.worker_log_format)

    async def run() -> int:
        worker = build_worker(settings, foreign)
        return await serve(worker, child_options(settings))

    return run_loop(run())


def await_server(settings: Settings, *, once: bool) -> None:
    """
    Return when the queue's server answers and a queue may run on it.

    arq's own command would print a traceback if not. With `once`, for `arq --check`, try a
    single time whether it answers.

    Raises:
        cache.errors.RedisUnavailable: the server refuses this client for good, or, with
            `once`, does not answer.
        cache.errors.UnsupportedRedisURL: with `once`, a cluster, where arq looks for another key.
        worker.errors.UnsafeServer: the server may evict jobs.
    """
    configure_logging(settings.worker_log_level, settings.worker_log_format)
    url = settings.redis_url
    if once and "cluster" in parse_url(url).kind:
        raise UnsupportedRedisURL(
            f"{redacted(url)}: arq --check cannot read a cluster; use `letta-workers health`"
        )

    async def probe() -> None:
        opened = open_pool(url, pool_options(settings), name="letta-redis-start", tag=QUEUE_TAG)
        async with opened as client:
            await wait_until_ready(client, url, deadline_s=0 if once else None)
            if not once:
                queue = QueueKeys.of(client).queue()
                await require_usable(client, queue, allow_eviction=settings.queue_allow_eviction)

    # Not asyncio.run, which would leave arq without a current event loop.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(probe())
    finally:
        loop.close()


def engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        lease_s=settings.worker_lease_s,
        retry=RetryPolicy(
            max_tries=settings.worker_max_tries,
            base_s=settings.worker_retry_base_s,
            cap_s=settings.worker_retry_cap_s,
        ),
        park_s=settings.worker_park_s,
        dead_max=settings.queue_dead_max,
        dead_max_age_s=settings.queue_dead_max_age_s,
        allow_eviction=settings.queue_allow_eviction,
    )


def child_options(settings: Settings) -> ChildOptions:
    return ChildOptions(
        shutdown_grace_s=settings.worker_shutdown_grace_s,
        max_rss_bytes=settings.worker_max_rss_bytes,
        max_jobs_done=settings.worker_recycle_jobs,
        configuration_errors=(SettingsError, CacheError, UnsafeServer),
    )
