"""Builds the guarded HTTP clients of webhooks and of LLM calls from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from settings import SettingsError, variable_name
from worker.http.policy import EgressPolicy, parse_hosts, parse_networks, parse_ports

if TYPE_CHECKING:
    from settings import Settings
    from worker.http.client import GuardedClient

# Per process. LETTA_LLM_MAX_CONCURRENCY limits calls in flight over all workers.
_LLM_CONNECTIONS = 100


def build_webhook_http(settings: Settings) -> GuardedClient:
    """
    Build the guarded HTTP client of the webhooks.

    Raises:
        settings.SettingsError: a certificate file cannot be used.
    """
    from worker.http.client import build_http_client
    from worker.http.transport import tls_context

    try:
        hosts = parse_hosts(settings.webhook_allow_hosts)
    except ValueError as exc:
        raise SettingsError(f"{variable_name('webhook_allow_hosts')} {exc}") from None
    policy = EgressPolicy(
        allowed=parse_networks(settings.webhook_allow_cidrs),
        hosts=hosts,
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


def build_llm_http(settings: Settings) -> GuardedClient:
    from worker.http.client import build_http_client

    policy = EgressPolicy(parse_networks(settings.llm_allow_cidrs))
    return build_http_client(policy, max_connections=_LLM_CONNECTIONS)
