"""
Composition root: builds everything from the settings, once, and hands it out.

`build_worker_settings` is what `arq worker.WorkerSettings` loads; `letta-workers
run` starts the same class in each of its processes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import structlog
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Function, func

from cache import codec, embedded
from cache.errors import CacheError
from cache.keys import QueueKeys
from cache.pool import Target, build_client, open_pool, parse_url, wait_until_ready
from cache.scripting import SharedScripts
from settings import Settings, SettingsError, get_settings, variable_name
from worker.child import ChildOptions, ManagedWorker, serve
from worker.client import (
    DELETE_LLM_FILES,
    FLUSH_LLM_BATCHES,
    FLUSH_LLM_GROUP,
    RUN_LLM_BATCH,
    RUN_LLM_REQUEST,
    TELL_LLM_REQUEST,
    JobQueue,
)
from worker.deps import Deps, WebhookConfig
from worker.effects.attempts import REPORT_WEBHOOK
from worker.effects.egress import tls_context
from worker.effects.http import GuardedClient, build_http_client
from worker.effects.providers import AnthropicProvider, OpenAIProvider
from worker.effects.rate import RateLimiter
from worker.effects.secrets import SecretBox
from worker.engine import EngineOptions, RetryPolicy, new_worker_id
from worker.engine.bridge import ManagedEngine, settings_class, worker_from
from worker.errors import UnsafeServer
from worker.jobs.batch import (
    flush_llm_batches,
    flush_llm_group,
    run_llm_batch,
    run_llm_request,
)
from worker.jobs.batch_after import delete_llm_files, tell_llm_request
from worker.jobs.batch_upkeep import REVIVE_LLM, REVIVE_LLM_CRON, revive_llm
from worker.jobs.schedule import CronExpression, cron_job
from worker.jobs.upkeep import REVIVE_CRON, REVIVE_WEBHOOKS, revive_webhooks
from worker.jobs.webhook import deliver_webhook, report_webhook
from worker.logs import configure_logging
from worker.policy.batch import LIMITS
from worker.policy.delivery import RetrySchedule
from worker.policy.egress import EgressPolicy, parse_hosts, parse_networks, parse_ports
from worker.policy.lanes import LaneLimits
from worker.policy.restart import RestartPolicy
from worker.supervisor import SupervisorOptions
from worker.webhooks import DELIVER_WEBHOOK
from worker.wiring import (
    encryption_key,
    llm_config,
    pool_options,
    queue_options,
    rate_limits,
    reveal,
)

log = structlog.get_logger("worker.main")

# These jobs decide for themselves when to give up; arq's own count must not.
_NO_LIMIT = 1_000_000
# Time beyond the HTTP calls of one run for the reads and writes around them.
_JOB_MARGIN_S = 5.0
_HEALTH_INTERVAL_S = 5
# Of attempts at one endpoint, unless a worker's jobs are so few that half of them are less.
_ENDPOINT_CONCURRENCY = 16
# Of one process; the limit on calls in flight is LETTA_LLM_MAX_CONCURRENCY, over all.
_LLM_CONNECTIONS = 100


class WorkerRedis(SharedScripts, ArqRedis):
    """arq's client, its scripts on one connection."""


def build_worker_settings(settings: Settings | None = None) -> type:
    """
    The class that arq reads. Every attribute is the class's own: arq ignores inherited ones.

    An embedded:// server starts here, and ends with this process.

    Raises:
        settings.SettingsError: a setting is wrong, or names a function that does not load.
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
        job_serializer=codec.encode,
        job_deserializer=codec.decode,
    )
    keys = QueueKeys()
    worker_id = new_worker_id()
    attributes = {
        "functions": build_functions(chosen),
        "cron_jobs": build_crons(chosen),
        "queue_name": keys.queue(),
        "redis_pool": client,
        # `arq --check` builds a client of its own, from this.
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
    return settings_class(
        attributes, engine={"options": engine_options(chosen), "worker_id": worker_id}
    )


def build_functions(settings: Settings) -> list[Function]:
    """Our jobs, and the operator's (LETTA_WORKER_FUNCTIONS) under their own names."""
    http_s = settings.llm_timeout_s + _JOB_MARGIN_S
    ours = [
        func(
            deliver_webhook,
            name=DELIVER_WEBHOOK,
            max_tries=_NO_LIMIT,
            timeout=settings.webhook_timeout_s + _JOB_MARGIN_S,
        ),
        func(report_webhook, name=REPORT_WEBHOOK),
        func(revive_webhooks, name=REVIVE_WEBHOOKS),
        func(flush_llm_batches, name=FLUSH_LLM_BATCHES),
        func(flush_llm_group, name=FLUSH_LLM_GROUP),
        func(run_llm_batch, name=RUN_LLM_BATCH, max_tries=_NO_LIMIT, timeout=3600),
        func(run_llm_request, name=RUN_LLM_REQUEST, max_tries=_NO_LIMIT, timeout=http_s),
        func(revive_llm, name=REVIVE_LLM),
        func(tell_llm_request, name=TELL_LLM_REQUEST),
        func(delete_llm_files, name=DELETE_LLM_FILES),
    ]
    paths = [path.strip() for path in settings.worker_functions.split(",") if path.strip()]
    return ours + [func(load_coroutine(path, variable_name("worker_functions"))) for path in paths]


def build_crons(settings: Settings) -> list[CronExpression]:
    """The flush of all batches, and the operator's crons (LETTA_WORKER_CRONS)."""
    crons = [
        _cron(
            flush_llm_batches,
            f"cron:{FLUSH_LLM_BATCHES}",
            settings.llm_batch_cron,
            "llm_batch_cron",
        ),
        cron_job(revive_webhooks, f"cron:{REVIVE_WEBHOOKS}", REVIVE_CRON),
        cron_job(revive_llm, f"cron:{REVIVE_LLM}", REVIVE_LLM_CRON),
    ]
    for part in filter(None, (part.strip() for part in settings.worker_crons.split(";"))):
        path, _, expression = part.partition("=")
        coroutine = load_coroutine(path.strip(), variable_name("worker_crons"))
        crons.append(_cron(coroutine, f"cron:{path.strip()}", expression.strip(), "worker_crons"))
    return crons


def _cron(coroutine: Any, name: str, expression: str, field: str) -> CronExpression:
    try:
        return cron_job(coroutine, name, expression)
    except ValueError as exc:
        raise SettingsError(
            f"{variable_name(field)}: {exc}; accepted: five cron fields, or six with seconds first"
        ) from None


def load_coroutine(path: str, named_by: str) -> Any:
    """
    `package.module:coroutine` -> the coroutine function; the working directory is searched too.

    Raises:
        SettingsError: it does not import, is not there, or is no coroutine function.
    """
    module, _, name = path.partition(":")
    found = _load(module, name, path, named_by)
    if not asyncio.iscoroutinefunction(found):
        raise SettingsError(f"{named_by}: {path} is not a coroutine function (async def)")
    return found


def _load(module: str, name: str, path: str, named_by: str) -> Any:
    if os.getcwd() not in sys.path:  # noqa: PTH109  (compared with sys.path's text)
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        return getattr(import_module(module), name)
    except Exception as exc:  # noqa: BLE001  (whatever the operator's module raises at import)
        reason = f"{type(exc).__name__}: {exc}"
        raise SettingsError(f"{named_by}: cannot load {path}: {reason}") from None


def arq_redis_settings(target: Target, settings: Settings) -> RedisSettings:
    """What stock arq's own client, as used by `arq --check`, needs to reach the same server."""
    files = (settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file)
    ca, cert, key = (str(path) if path else None for path in files)
    return RedisSettings(
        host=list(target.nodes)
        if target.kind == "sentinel"
        else (target.nodes or (("", 0),))[0][0],
        port=6379 if target.kind == "sentinel" else (target.nodes or (("", 6379),))[0][1],
        unix_socket_path=target.path or None,
        database=target.db,
        username=target.username,
        password=target.password,
        ssl=target.tls,
        ssl_ca_certs=ca,
        ssl_certfile=cert,
        ssl_keyfile=key,
        ssl_check_hostname=target.tls,
        conn_timeout=max(1, int(settings.redis_connect_timeout_s)),
        conn_retries=1,
        sentinel=target.kind == "sentinel",
        sentinel_master=target.service or "mymaster",
    )


def build_webhook_client(settings: Settings) -> GuardedClient:
    """
    The guarded client of the webhooks.

    Raises:
        settings.SettingsError: a certificate file cannot be used.
    """
    policy = EgressPolicy(
        allowed=parse_networks(settings.webhook_allow_cidrs),
        hosts=parse_hosts(settings.webhook_allow_hosts),
        ports=parse_ports(settings.webhook_ports),
    )
    names = ("webhook_ca_file", "webhook_cert_file", "webhook_key_file")
    ca, cert, key = (str(path) if (path := getattr(settings, name)) else None for name in names)
    try:
        tls = tls_context(ca_file=ca, cert_file=cert, key_file=key)
    except (OSError, ValueError) as exc:
        given = ", ".join(variable_name(name) for name in names if getattr(settings, name))
        raise SettingsError(f"{given}: not usable as PEM files: {exc}") from None
    return build_http_client(
        policy,
        max_connections=settings.worker_max_jobs,
        tls=tls,
        proxy=settings.webhook_proxy_url,
    )


def webhook_config(settings: Settings) -> WebhookConfig:
    secrets = reveal(settings.webhook_secret)
    base_s = settings.webhook_retry_base_s
    delays = [float(part) for part in settings.webhook_retry_delays_s.split()]
    return WebhookConfig(
        secrets=tuple(secrets.split()) if secrets else (),
        schedule=RetrySchedule(
            max_attempts=settings.webhook_max_attempts,
            base_s=base_s or delays[0],
            cap_s=settings.webhook_retry_cap_s,
            delays_s=() if base_s else tuple(delays),
            jitter=settings.webhook_retry_jitter,
            retry_after_max_s=settings.webhook_retry_after_max_s,
        ),
        timeout_s=settings.webhook_timeout_s,
        limits=LaneLimits(
            concurrency=_endpoint_concurrency(settings),
            rate_per_s=settings.webhook_endpoint_rate,
            breaker_failures=settings.webhook_breaker_failures,
            open_s=settings.webhook_breaker_open_s,
            open_max_s=settings.webhook_breaker_open_max_s,
            disable_after_s=settings.webhook_disable_after_s,
            # Not before the job's own limit has ended the attempt.
            slot_s=settings.webhook_timeout_s + 2 * _JOB_MARGIN_S,
        ),
        keep_response_bytes=settings.webhook_keep_response_bytes,
        max_response_bytes=settings.webhook_max_response_bytes,
    )


def _endpoint_concurrency(settings: Settings) -> int:
    half = max(1, settings.worker_max_jobs // 2)
    return settings.webhook_endpoint_concurrency or min(_ENDPOINT_CONCURRENCY, half)


def build_deps(settings: Settings, client: Any) -> Deps:
    """Everything a job of ours needs, over the worker's own Redis client."""
    llm_egress = EgressPolicy(parse_networks(settings.llm_allow_cidrs))
    return Deps(
        queue=JobQueue(client, queue_options(settings)),
        http=build_webhook_client(settings),
        llm_http=(llm_http := build_http_client(llm_egress, max_connections=_LLM_CONNECTIONS)),
        secrets=SecretBox(encryption_key(settings)),
        webhooks=webhook_config(settings),
        llm=llm_config(settings),
        providers={
            "openai": OpenAIProvider(
                llm_http,
                base_url=settings.openai_base_url,
                api_key=reveal(settings.openai_api_key),
                timeout_s=settings.llm_timeout_s,
            ),
            "anthropic": AnthropicProvider(
                llm_http,
                base_url=settings.anthropic_base_url,
                api_key=reveal(settings.anthropic_api_key),
                timeout_s=settings.llm_timeout_s,
            ),
        },
        limiters={
            name: RateLimiter(
                client,
                QueueKeys(),
                name,
                rate_limits(settings),
                lease_s=settings.llm_timeout_s + _JOB_MARGIN_S,
            )
            for name in LIMITS
        },
    )


def _startup(settings: Settings) -> Callable[[dict[Any, Any]], Any]:
    async def startup(ctx: dict[Any, Any]) -> None:
        configure_logging(settings.worker_log_level, settings.worker_log_format)
        deps = build_deps(settings, ctx["redis"])
        deps.put_into(ctx)
        log.info("worker.started", worker_id=ctx["worker_id"], max_jobs=settings.worker_max_jobs)

    return startup


async def _shutdown(ctx: dict[Any, Any]) -> None:
    deps = Deps.find(ctx)
    if deps is None:  # ended before the server was ever reached
        return
    await deps.http.aclose()
    await deps.llm_http.aclose()
    await deps.queue.aclose()
    log.info("worker.stopped", worker_id=ctx["worker_id"])


def supervisor_options(settings: Settings) -> SupervisorOptions:
    return SupervisorOptions(
        shutdown_grace_s=settings.worker_shutdown_grace_s,
        heartbeat_timeout_s=settings.worker_heartbeat_timeout_s,
        restart=RestartPolicy(
            max_crashes=settings.worker_max_crashes,
            crash_window_s=settings.worker_crash_window_s,
        ),
    )


def child_options(settings: Settings) -> ChildOptions:
    return ChildOptions(
        shutdown_grace_s=settings.worker_shutdown_grace_s,
        max_rss_bytes=settings.worker_max_rss_bytes,
        max_jobs_done=settings.worker_recycle_jobs,
        configuration_errors=(SettingsError, CacheError, UnsafeServer),
    )


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


def build_worker(settings: Settings, foreign: type | None = None) -> ManagedWorker:
    """
    A worker to `run()` on the running event loop; what it needs is built with it.

    `foreign` is anybody's arq settings class; it names its own server.
    """
    found = foreign or build_worker_settings(settings)
    return ManagedEngine(worker_from(found, handle_signals=False))


def load_settings_class(path: str) -> type:
    """
    `package.module.Class`, as arq's command takes it.

    Raises:
        SettingsError: it does not import, or is no class with `functions` or `cron_jobs`.
    """
    module, _, name = path.rpartition(".")
    found = _load(module, name, path, "--settings")
    if not isinstance(found, type) or not {"functions", "cron_jobs"} & set(vars(found)):
        raise SettingsError(
            f"--settings: {path} is not an arq settings class (functions or cron_jobs)"
        )
    return found


def run_child(settings: Settings, foreign: type | None = None) -> int:
    """One worker process; returns its exit code (worker/child.py)."""
    configure_logging(settings.worker_log_level, settings.worker_log_format)

    async def run() -> int:
        worker = build_worker(settings, foreign)
        return await serve(worker, child_options(settings))

    return asyncio.run(run())


def await_server(settings: Settings, *, once: bool) -> None:
    """
    Return when the queue's server answers; `once` looks a single time.

    For arq's own command, which meets an absent server with a traceback.

    Raises:
        cache.errors.RedisUnavailable: it does not answer (`once` only).
    """
    configure_logging(settings.worker_log_level, settings.worker_log_format)

    async def look() -> None:
        options = pool_options(settings)
        async with open_pool(settings.redis_url, options, name="letta-redis-start") as client:
            await wait_until_ready(client, settings.redis_url, deadline_s=0 if once else None)

    # A loop of its own: asyncio.run would leave arq without a current one.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(look())
    finally:
        loop.close()
