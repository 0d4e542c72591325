"""From settings to what a worker process is built of: its parts, its engine, its supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arq.connections import RedisSettings

from cache.connection.pool import Target
from cache.errors import CacheError
from settings import SettingsError, variable_name
from worker.app.wiring import (
    JOB_MARGIN_S,
    encryption_key,
    llm_config,
    queue_options,
    rate_limits,
    reveal,
)
from worker.client import JobQueue
from worker.deps import Deps, WebhookConfig
from worker.engine import EngineOptions, RetryPolicy
from worker.errors import UnsafeServer
from worker.http.client import GuardedClient, build_http_client
from worker.http.policy import EgressPolicy, parse_hosts, parse_networks, parse_ports
from worker.http.transport import tls_context
from worker.keys import QueueKeys
from worker.llm.grouping import LIMITS
from worker.llm.providers import AnthropicProvider, OpenAIProvider
from worker.llm.rate_limits import RateLimiter
from worker.process.child import ChildOptions
from worker.process.policy import RestartPolicy
from worker.process.supervisor import SupervisorOptions
from worker.webhooks.limits import TargetLimits
from worker.webhooks.policy import RetrySchedule
from worker.webhooks.secrets import SecretBox

if TYPE_CHECKING:
    from settings import Settings

# Of attempts at one endpoint, unless a worker's jobs are so few that half of them are less.
_ENDPOINT_CONCURRENCY = 16
# Of one process; the limit on calls in flight is LETTA_LLM_MAX_CONCURRENCY, over all.
_LLM_CONNECTIONS = 100


class HiddenRedisSettings(RedisSettings):
    """arq's own, whose repr shows the password."""

    def __repr__(self) -> str:
        return f"RedisSettings(host={self.host!r}, port={self.port!r}, database={self.database!r})"


def arq_redis_settings(target: Target, settings: Settings) -> RedisSettings:
    """What stock arq's own client, as used by `arq --check`, needs to reach the same server."""
    files = (settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file)
    ca, cert, key = (str(path) if path else None for path in files)
    return HiddenRedisSettings(
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
        limits=TargetLimits(
            concurrency=_endpoint_concurrency(settings),
            rate_per_s=settings.webhook_endpoint_rate,
            breaker_failures=settings.webhook_breaker_failures,
            open_s=settings.webhook_breaker_open_s,
            open_max_s=settings.webhook_breaker_open_max_s,
            disable_after_s=settings.webhook_disable_after_s,
            # Not before the job's own limit has ended the attempt.
            slot_s=settings.webhook_timeout_s + 2 * JOB_MARGIN_S,
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
                max_bytes=settings.llm_max_response_bytes,
            ),
            "anthropic": AnthropicProvider(
                llm_http,
                base_url=settings.anthropic_base_url,
                api_key=reveal(settings.anthropic_api_key),
                timeout_s=settings.llm_timeout_s,
                max_bytes=settings.llm_max_response_bytes,
            ),
        },
        limiters={
            name: RateLimiter(
                client,
                QueueKeys(),
                name,
                rate_limits(settings),
                lease_s=settings.llm_timeout_s + JOB_MARGIN_S,
            )
            for name in LIMITS
        },
    )


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
