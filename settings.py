"""
Defines every setting of the service in one typed class.

A value comes from the first source that has it: an argument, an environment
variable (``LETTA_`` + the field's name), a ``.env`` file in the working
directory, or a file named like the variable in the secrets directory
(``LETTA_SECRETS_DIR``, else ``/run/secrets``). A ``.env`` that another user of
the machine could have written is ignored, and so are variables of other
programs that share the prefix, except one that is spelled almost like ours: it is
logged, and so is a variable that has no effect beside the others. This module
imports nothing of ours. docs/settings.md is generated from this class.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

__all__ = ["Settings", "SettingsError", "get_settings", "load_settings"]

ENV_PREFIX = "LETTA_"
REDIS_URL_FORMS = (
    "redis://, rediss://, unix://, redis+sentinel://host:port,host:port/service, "
    "redis+cluster://host:port,host:port (rediss+... for TLS), embedded://[/directory] or, for tests, "
    "embedded+cluster://"
)
_REDIS_URL = re.compile(
    r"^(rediss?://[^/\s]+(/\d*)?(\?\S*)?"
    r"|unix://\S+"
    r"|rediss?\+sentinel://[^/\s]+/[^/\s]+(/\d+)?(\?\S*)?"
    r"|rediss?\+cluster://[^/\s]+/?(\?\S*)?"
    r"|embedded://(/\S*)?"
    r"|embedded\+cluster://)$"
)
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["auto", "json", "console"]


class SettingsError(ValueError):
    """Some settings are wrong. `str()` gives one line per variable and no secrets."""


class Settings(BaseSettings):
    """The settings of cache, queue and workers. Sizes are bytes, times are seconds."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    # -- the servers ---------------------------------------------------------
    redis_url: str = Field(
        "redis://localhost:6379/0",
        repr=False,
        description=f"Server of the queue, webhooks and LLM batches. Accepted: {REDIS_URL_FORMS}.",
    )
    cache_redis_url: str | None = Field(
        None,
        repr=False,
        description=(
            "Server of the cache; unset: the queue's server. Give the cache its own server where "
            "memory is tight: a cache needs eviction, and eviction loses queued jobs."
        ),
    )
    redis_connect_timeout_s: float = Field(
        2.0, gt=0, le=60, description="Limit for opening one connection, seconds."
    )
    redis_socket_timeout_s: float = Field(
        5.0,
        gt=0,
        le=300,
        description="Limit for one reply, seconds. A hung server is detected after this.",
    )
    redis_health_check_interval_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Ping a connection before use when it was idle for longer than this, seconds.",
    )
    redis_max_connections: int = Field(
        100, ge=1, le=10_000, description="Maximum connections of one client in one process."
    )
    redis_retries: int = Field(
        3,
        ge=0,
        le=20,
        description="Retries of opening a connection, with jittered backoff.",
    )
    redis_ca_file: Path | None = Field(
        None, description="PEM file of the CAs to trust for rediss://; unset: the system's."
    )
    redis_cert_file: Path | None = Field(
        None, description="PEM client certificate for rediss:// servers that require one."
    )
    redis_key_file: Path | None = Field(
        None, description="PEM key of the client certificate (may be in the same file)."
    )
    redis_username: str | None = Field(
        None,
        max_length=256,
        description="User name for LETTA_REDIS_URL when the URL has none.",
    )
    redis_password: SecretStr | None = Field(
        None,
        max_length=1024,
        description=(
            "Password for LETTA_REDIS_URL when the URL has none. Given as a secrets file, it "
            "appears in no URL and in no environment."
        ),
    )
    cache_redis_username: str | None = Field(
        None,
        max_length=256,
        description="User name for LETTA_CACHE_REDIS_URL when the URL has none.",
    )
    cache_redis_password: SecretStr | None = Field(
        None,
        max_length=1024,
        description=(
            "Password for LETTA_CACHE_REDIS_URL when the URL has none. As a secrets file, like "
            "LETTA_REDIS_PASSWORD."
        ),
    )
    redis_sentinel_username: str | None = Field(
        None,
        max_length=256,
        description="User name for the Sentinels of a redis+sentinel:// or rediss+sentinel:// URL.",
    )
    redis_sentinel_password: SecretStr | None = Field(
        None, max_length=1024, description="Password for the Sentinels; unset: no password."
    )

    # -- the switches --------------------------------------------------------
    use_redis_queue: bool = Field(
        True,
        description=(
            "Off: `open_queue` connects to no server and refuses every call with QueueDisabled, so "
            "that the caller does the work inline. Workers and commands go on."
        ),
    )
    use_agent_cache: bool = Field(
        True, description="Off: every cached read calls its loader, and nothing is stored."
    )

    # -- the cache -----------------------------------------------------------
    cache_agent_ttl_s: float = Field(
        600.0,
        gt=0,
        le=604_800,
        description="TTL of an agent's state, seconds. It bounds the staleness after a lost invalidation.",
    )
    cache_negative_ttl_s: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="TTL of a loader's answer None, seconds; 0: not stored.",
    )
    cache_ttl_jitter: float = Field(
        0.1,
        ge=0,
        le=0.9,
        description="Random share by which a TTL is shortened, so that entries do not expire together.",
    )
    cache_early_refresh_beta: float = Field(
        1.0,
        ge=0,
        le=10,
        description="How early hot values are reloaded before they expire (beta of XFetch); 0: never.",
    )
    cache_lease_s: float = Field(
        3.0,
        ge=0.1,
        le=60,
        description="Lease of one load, seconds, renewed at a third: after a crash another process loads.",
    )
    cache_loader_timeout_s: float | None = Field(
        None, gt=0, le=3600, description="Limit for one run of a loader, seconds; unset: none."
    )
    cache_intent_s: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description=(
            "How long the agents that a process was writing are not cached after it died, seconds. "
            "An intent is renewed at a third while the write runs, and must outlive a pause of the process."
        ),
    )
    cache_cut_off: Literal["serve", "refuse"] = Field(
        "serve",
        description=(
            "When the cache's server cannot be reached at the beginning of a write. serve: the write goes "
            "on, and others may read older values until the server is told. refuse: CacheUnavailable."
        ),
    )
    cache_timeout_s: float = Field(
        0.04,
        ge=0.001,
        le=10,
        description="Limit for one reply of the cache's server, seconds; then the call uses its loader.",
    )
    cache_max_value_bytes: int = Field(
        1_048_576,
        ge=1024,
        le=67_108_864,
        description="Largest stored value, bytes. A larger value is returned but not stored.",
    )
    cache_max_memory_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description=(
            "On a server that evicts nothing, such as the queue's: share of its maxmemory above which "
            "nothing new is cached; 0: no limit."
        ),
    )
    cache_max_dependents: int = Field(
        10_000,
        ge=10,
        le=1_000_000,
        description="Most agents recorded per dependency; beyond it, invalidating it clears the cache.",
    )
    cache_schema_version: int = Field(
        1,
        ge=0,
        le=65_535,
        description="Version of the cached models. Raise it when their meaning changes.",
    )
    cache_compress_min_bytes: int = Field(
        0,
        ge=0,
        le=67_108_864,
        description="Larger values are compressed with zstd (letta-redis[zstd]), bytes; 0: never.",
    )
    cache_encryption_keys: SecretStr | None = Field(
        None,
        description=(
            "Encrypts cached values: base64 of 32 bytes. To rotate, give several as `id:base64`, "
            "separated by spaces: the first encrypts, all decrypt. Unset: values are stored in "
            "clear text. Needs letta-redis[encryption]."
        ),
    )
    cache_message_ttl_s: float = Field(
        3600.0, gt=0, le=604_800, description="TTL of a conversation's message window, seconds."
    )
    cache_message_window: int = Field(
        200, ge=1, le=1000, description="Most messages kept per conversation."
    )
    cache_session_ttl_s: float = Field(
        1800.0, ge=1, le=604_800, description="TTL of a session after its last read, seconds."
    )
    cache_local_ttl_s: float = Field(
        0.0,
        ge=0,
        le=60,
        description=(
            "How long a process may serve its own copy of a value, seconds. It bounds the copy's "
            "staleness. 0: no copies."
        ),
    )
    cache_local_max_bytes: int = Field(
        67_108_864, ge=65_536, le=17_179_869_184, description="Most bytes of copies in one process."
    )
    cache_local_share_objects: bool = Field(
        False,
        description="Give every caller the same object. Callers must then not change it.",
    )

    # -- the workers ---------------------------------------------------------
    worker_count: int = Field(
        4,
        ge=1,
        le=256,
        description="Worker processes of `letta-workers run`. Start with one per core.",
    )
    worker_log_level: LogLevel = Field("INFO", description="Lowest level that is logged.")
    worker_log_format: LogFormat = Field(
        "auto", description="json, console (for people), or auto: console on a terminal."
    )
    worker_max_jobs: int = Field(
        32, ge=1, le=10_000, description="Jobs that one worker process runs concurrently."
    )
    worker_job_timeout_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Limit for one run of a job that sets none itself, seconds.",
    )
    worker_lease_s: float = Field(
        15.0,
        ge=1,
        le=300,
        description="Lease of a running job, seconds, renewed at a third: after a crash the job runs again.",
    )
    worker_shutdown_grace_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="How long running jobs may take to finish after TERM, seconds; then they are given back.",
    )
    worker_keep_result_s: float = Field(
        3600.0, ge=0, le=2_592_000, description="How long a job's result is kept, seconds."
    )
    worker_functions: str = Field(
        "",
        description="Your own jobs: `package.module:coroutine`, several separated by commas.",
    )
    worker_crons: str = Field(
        "",
        description=(
            "Your own cron jobs: `package.module:coroutine=<cron expression>`, "
            "several separated by semicolons."
        ),
    )
    queue_max_job_bytes: int = Field(
        1_048_576,
        ge=1024,
        le=67_108_864,
        description="Largest encoded job, bytes. Store larger payloads elsewhere and pass a reference.",
    )

    # -- supervision ---------------------------------------------------------
    worker_max_rss_bytes: int = Field(
        0,
        ge=0,
        le=2**50,
        description="A worker process that uses more memory drains and is replaced, bytes; 0: never.",
    )
    worker_recycle_jobs: int = Field(
        0,
        ge=0,
        le=10**12,
        description="A worker process drains and is replaced after this many jobs; 0: never.",
    )
    worker_heartbeat_timeout_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description=(
            "A worker process whose event loop is silent for longer is killed and replaced, "
            "seconds. At least 5, because starting must fit in; 0: never, for use with a debugger."
        ),
    )
    worker_max_crashes: int = Field(
        5,
        ge=0,
        le=1000,
        description="Crashes allowed within LETTA_WORKER_CRASH_WINDOW_S; one more exits with code 1.",
    )
    worker_crash_window_s: float = Field(
        60.0, gt=0, le=86_400, description="Window in which crashes are counted, seconds."
    )

    # -- the web server ------------------------------------------------------
    web_listen: str | None = Field(
        None,
        description=(
            "host:port where `letta-workers run` and `web` serve the page, the API, probes and metrics; "
            "unset: `run` serves nothing, `web` listens on 127.0.0.1:8484."
        ),
    )
    web_token: SecretStr | None = Field(
        None,
        min_length=16,
        description=(
            "Bearer token that everything but the probes asks for, at least 16 characters; needed "
            "where other machines reach LETTA_WEB_LISTEN."
        ),
    )
    web_read_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="A second token, which may read everything and change nothing.",
    )
    web_user_header: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description=(
            "Request header in which your reverse proxy names the user, such as X-Forwarded-User, for "
            "the audit trail. The proxy must overwrite it. It grants nothing."
        ),
    )
    web_show_arguments: bool = Field(
        False,
        description="Show the arguments of jobs to operators. They may hold secrets.",
    )

    # -- the engine ----------------------------------------------------------
    worker_max_tries: int = Field(
        5,
        ge=1,
        le=1000,
        description="Failed runs after which a job is a dead letter. A job may set its own limit.",
    )
    worker_retry_base_s: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="Ceiling of a job's first retry delay, seconds. It doubles each time; full jitter.",
    )
    worker_retry_cap_s: float = Field(
        600.0, gt=0, le=604_800, description="Ceiling of every retry delay, seconds."
    )
    worker_park_s: float = Field(
        900.0,
        ge=0,
        le=604_800,
        description=(
            "How long a job whose name no worker knows waits for a rolling deploy, seconds; then "
            "it is a dead letter."
        ),
    )
    queue_max_length: int = Field(
        1_000_000,
        ge=0,
        le=1_000_000_000,
        description="Waiting jobs, all priorities, at which an enqueue is refused; 0: no limit.",
    )
    queue_max_memory_share: float = Field(
        0.9,
        ge=0,
        le=1,
        description=(
            "Share of the server's maxmemory above which an enqueue is refused, so that workers "
            "can still finish queued jobs; 0: no watermark."
        ),
    )
    queue_wait_replicas: int = Field(
        0,
        ge=0,
        le=5,
        description=(
            "Replicas that must have what a client stores before its call returns; 0: none. A "
            "failover loses nothing that was confirmed."
        ),
    )
    queue_wait_timeout_s: float = Field(
        1.0,
        gt=0,
        le=60,
        description=(
            "How long a call waits for LETTA_QUEUE_WAIT_REPLICAS, seconds. After it, calls return "
            "unconfirmed at once, until the replicas are back."
        ),
    )
    queue_wait_required: bool = Field(
        False,
        description="Raise NotConfirmed when LETTA_QUEUE_WAIT_REPLICAS do not have what was stored.",
    )
    queue_dead_max: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="Most dead letters kept; the oldest are deleted first.",
    )
    queue_dead_max_age_s: float = Field(
        2_592_000.0,
        ge=60,
        le=31_536_000,
        description="How long a dead letter is kept, seconds.",
    )
    queue_allow_eviction: bool = Field(
        False,
        description="Start also on a server whose maxmemory-policy may silently drop queued jobs.",
    )

    # -- webhooks ------------------------------------------------------------
    webhook_secret: SecretStr | None = Field(
        None,
        description=(
            "Signing secrets: `whsec_` + base64 of 24-64 bytes (HMAC), or `whsk_` + base64 of an "
            "ed25519 key's 32 bytes. To rotate, give several separated by spaces; each one signs. "
            "Unset: deliveries are unsigned."
        ),
    )
    webhook_bearers: SecretStr | None = Field(
        None,
        description=(
            "Bearer tokens of endpoints, for workers: `TOKEN@URL`, several separated by spaces. A "
            "delivery to exactly this URL carries the token. It is never stored, so it needs no "
            "encryption key; a webhook's own `bearer` or authorization header comes first."
        ),
    )
    webhook_encryption_key: SecretStr | None = Field(
        None,
        description=(
            "Encrypts the secrets of single webhooks, and all their URLs, in Redis: base64 of 32 bytes. "
            "To rotate, give several as `id:base64`, separated by spaces: the first encrypts, all "
            "decrypt. Clients and workers need the same. Unset: secrets are refused, URLs are in clear."
        ),
    )
    webhook_timeout_s: float = Field(
        15.0, gt=0, le=120, description="Limit for one whole attempt, seconds."
    )
    webhook_max_attempts: int = Field(
        10, ge=1, le=50, description="Failed attempts after which a delivery is dead."
    )
    webhook_retry_delays_s: str = Field(
        "5 300 1800 7200 18000 36000 50400 72000 86400",
        description=(
            "Ceilings of the delays between attempts, seconds, separated by spaces. The last one "
            "repeats. The default is the schedule of Standard Webhooks."
        ),
    )
    webhook_retry_base_s: float | None = Field(
        None,
        gt=0,
        le=3600,
        description=(
            "Ceiling of the first retry's delay, seconds, doubled each time. Replaces the list in "
            "LETTA_WEBHOOK_RETRY_DELAYS_S."
        ),
    )
    webhook_retry_cap_s: float = Field(
        86_400.0, gt=0, le=604_800, description="Ceiling of every retry delay, seconds."
    )
    webhook_retry_jitter: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Random share of a retry delay: 1 is full jitter, 0 is none.",
    )
    webhook_retry_after_max_s: float = Field(
        86_400.0,
        gt=0,
        le=604_800,
        description="Longest Retry-After that is honored, seconds.",
    )
    webhook_deadline_s: float = Field(
        432_000.0,
        gt=0,
        le=2_592_000,
        description=(
            "A delivery that has not ended after this is dead, seconds. It bounds deliveries that "
            "wait for a throttled endpoint and so do not use up their attempts."
        ),
    )
    webhook_max_body_bytes: int = Field(
        262_144, ge=64, le=16_777_216, description="Largest webhook body, bytes."
    )
    webhook_retention_s: float = Field(
        604_800.0,
        ge=60,
        le=7_776_000,
        description="How long a delivery is kept after its last change, seconds.",
    )
    webhook_allow_cidrs: str = Field(
        "",
        description=(
            "Private networks that webhooks may reach: CIDRs separated by commas. "
            "Empty: public addresses only."
        ),
    )
    webhook_allow_hosts: str = Field(
        "",
        description=(
            "Host names whose addresses may be private, separated by commas; `*.b` means every "
            "name below `b`. Link-local and metadata addresses stay forbidden."
        ),
    )
    webhook_ports: str = Field(
        "",
        description=(
            "Ports that webhooks may reach, such as `443, 8000-8999`. Empty: every port except "
            "those of other well-known protocols."
        ),
    )
    webhook_ca_file: Path | None = Field(
        None, description="PEM file of the CAs to trust for https; unset: the system's."
    )
    webhook_cert_file: Path | None = Field(
        None, description="PEM client certificate for receivers that require one."
    )
    webhook_key_file: Path | None = Field(
        None, description="PEM key of the client certificate (may be in the same file)."
    )
    webhook_proxy_url: str | None = Field(
        None,
        repr=False,
        description=(
            "URL of an egress proxy for all webhooks. Names are checked first, but the proxy "
            "resolves them again: it must guard private networks itself."
        ),
    )
    webhook_keep_response_bytes: int = Field(
        1024,
        ge=0,
        le=65_536,
        description="Bytes of each response's beginning that are stored with its attempt.",
    )
    webhook_max_response_bytes: int = Field(
        1_048_576,
        ge=0,
        le=67_108_864,
        description="Longest response, bytes. A longer one counts as a failure, and reading stops.",
    )
    webhook_endpoint_concurrency: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description=(
            "Most concurrent attempts at one endpoint, over all workers. Unset: half of "
            "LETTA_WORKER_MAX_JOBS, at most 16, so that a hanging endpoint leaves slots for others."
        ),
    )
    webhook_host_concurrency: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description=(
            "Most concurrent attempts at one host, over all workers. Its endpoints share them fairly: "
            "one alone gets two thirds. Unset: three quarters of LETTA_WORKER_MAX_JOBS, at most 64, "
            "or half more than LETTA_WEBHOOK_ENDPOINT_CONCURRENCY if that is set and higher."
        ),
    )
    webhook_endpoint_rate: float = Field(
        0.0,
        ge=0,
        le=100_000,
        description="Most attempts per second at one endpoint, over all workers; 0: no limit.",
    )
    webhook_breaker_failures: int = Field(
        5,
        ge=0,
        le=10_000,
        description=(
            "Consecutive failures (no answer, or 5xx) that open an endpoint's circuit breaker; 0: "
            "never."
        ),
    )
    webhook_breaker_open_s: float = Field(
        30.0,
        gt=0,
        le=86_400,
        description="An open breaker allows one probe after this, seconds; doubled at each failure.",
    )
    webhook_breaker_open_max_s: float = Field(
        600.0, gt=0, le=86_400, description="Longest time that a breaker stays open, seconds."
    )
    webhook_disable_after_s: float = Field(
        432_000.0,
        ge=0,
        le=7_776_000,
        description="An endpoint that did nothing but fail for this long is disabled, seconds; 0: never.",
    )
    webhook_replay_rate: float = Field(
        20.0,
        gt=0,
        le=10_000,
        description="Deliveries per second that a replay sends, so that new events are not delayed.",
    )
    webhook_on_end: str = Field(
        "",
        description=(
            "Name of a job that runs, at least once, for every delivery that has ended: "
            "`async def f(ctx, delivery: dict)`."
        ),
    )

    # -- LLM requests --------------------------------------------------------
    openai_base_url: str = Field(
        "https://api.openai.com/v1",
        description="Base URL of the OpenAI-compatible endpoint that answers `openai` requests.",
    )
    openai_api_key: SecretStr | None = Field(
        None, description="Bearer key for that endpoint. Never stored in Redis."
    )
    llm_allow_cidrs: str = Field(
        "",
        description="Private networks that LLM calls may reach: CIDRs separated by commas.",
    )
    llm_batch_max_requests: int = Field(
        500, ge=1, le=50_000, description="A batch is flushed when it holds this many requests."
    )
    llm_batch_max_age_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="A batch is flushed when its oldest request has waited this long, seconds.",
    )
    llm_batch_cron: str = Field(
        "*/5 * * * *",
        description="When all waiting requests are flushed: cron (UTC), 5 fields or 6 with seconds first.",
    )
    llm_poll_interval_s: float = Field(
        30.0, ge=0.05, le=3600, description="Interval of polling a submitted batch, seconds."
    )
    llm_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Limit for one HTTP call to a provider, seconds."
    )
    llm_max_body_bytes: int = Field(
        1_048_576, ge=1024, le=16_777_216, description="Largest request body, bytes."
    )
    llm_max_response_bytes: int = Field(
        16_777_216,
        ge=65_536,
        le=67_108_864,
        description=(
            "Largest reply of a provider, bytes after decompression. A larger one ends its request "
            "with the error response_too_large."
        ),
    )
    llm_result_ttl_s: float = Field(
        259_200.0,
        ge=60,
        le=2_592_000,
        description="How long an unread answer is kept, seconds.",
    )
    anthropic_base_url: str = Field(
        "https://api.anthropic.com",
        description="Base URL of the Anthropic-compatible endpoint that answers `anthropic` requests.",
    )
    anthropic_api_key: SecretStr | None = Field(
        None, description="Key (x-api-key) for that endpoint. Never stored in Redis."
    )
    llm_read_result_ttl_s: float = Field(
        3600.0,
        ge=1,
        le=2_592_000,
        description="How long an answer is kept after its first read, seconds.",
    )
    llm_cache_ttl_s: float = Field(
        0.0,
        ge=0,
        le=604_800,
        description="How long a successful answer is reused for equal requests, seconds; 0: never.",
    )
    llm_batch_max_bytes: int = Field(
        100_000_000,
        ge=1024,
        le=256_000_000,
        description="A batch is flushed when its bodies reach this size, bytes.",
    )
    llm_batch_max_tokens: int = Field(
        0,
        ge=0,
        le=10**12,
        description="A batch is flushed at this many estimated tokens; 0: no limit.",
    )
    llm_item_max_tries: int = Field(
        3,
        ge=1,
        le=100,
        description="Most batches that a request is part of if its items expire, are lost or overloaded.",
    )
    llm_deadline_margin_s: float = Field(
        120.0,
        ge=0.1,
        le=86_400,
        description="A request unanswered this long before its deadline becomes a direct call, seconds.",
    )
    llm_on_ambiguous: Literal["adopt", "resubmit", "fail"] = Field(
        "adopt",
        description=(
            "What to do when it is unknown whether a batch was submitted: look it up until it is "
            "known (adopt), submit again and perhaps pay twice (resubmit), or fail it (fail)."
        ),
    )
    llm_unconfirmed_wait_s: float = Field(
        120.0,
        ge=0.1,
        le=86_400,
        description="An unanswered submission counts as absent only after this, seconds.",
    )
    llm_requests_per_minute: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Direct calls per minute to a provider, over all workers; 0: no limit.",
    )
    llm_tokens_per_minute: int = Field(
        0,
        ge=0,
        le=10**12,
        description="Estimated tokens per minute of direct calls, over all workers; 0: no limit.",
    )
    llm_max_concurrency: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Most direct calls in flight, over all workers; fewer while a provider is overloaded.",
    )
    llm_urgent_share: float = Field(
        0.2,
        ge=0,
        le=0.9,
        description="Share of the direct calls in flight that is reserved for urgent requests.",
    )
    llm_batch_price_factor: float = Field(
        0.5,
        ge=0,
        le=10,
        description="Price of a token in a batch, as a share of its price in a direct call.",
    )
    llm_webhook_url: str | None = Field(
        None,
        description="URL that gets a webhook for every ended batch (event type llm.batch.ended).",
    )
    llm_delete_files: Literal["none", "input", "all"] = Field(
        "input",
        description=(
            "Files deleted at the provider when their batch has ended: the uploaded file, which it "
            "would keep forever (input); also the results, which it keeps for a while (all); none."
        ),
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (pydantic's signature)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ignore a `.env` that another user of the machine could have written, and log it."""
        _require_fields(getattr(init_settings, "init_kwargs", ()))
        reason = why_untrusted(Path(".env"))
        if reason is not None:
            path = str(Path(".env").absolute())
            _warn("settings.env_file_ignored", path=path, reason=reason)
            return init_settings, env_settings, file_secret_settings
        return init_settings, env_settings, dotenv_settings, file_secret_settings

    @model_validator(mode="after")
    def _login(self) -> Self:
        for field in ("redis", "cache_redis"):
            url = getattr(self, f"{field}_url")
            if url is not None:
                with_login = _with_login(url, *_login_of(self, field))
                object.__setattr__(self, f"{field}_url", with_login)
        return self

    @field_validator("worker_log_level", "worker_log_format", mode="before")
    @classmethod
    def _fold_case(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        upper = value.strip().upper()
        return upper if upper in LogLevel.__args__ else value.strip().lower()  # type: ignore[attr-defined]

    @field_validator("redis_url", "cache_redis_url")
    @classmethod
    def _redis_url(cls, value: str | None) -> str | None:
        if value is not None and not _REDIS_URL.match(value):
            raise ValueError(f"is not a Redis URL; accepted: {REDIS_URL_FORMS}")
        return value

    @field_validator("openai_base_url", "anthropic_base_url", "llm_webhook_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.match(r"^https?://[^/\s@?#]+(/[^\s?#]*)?$", value):
            raise ValueError("is not an http(s) URL without user, query or fragment")
        return value.rstrip("/")

    @field_validator("webhook_allow_cidrs", "llm_allow_cidrs")
    @classmethod
    def _cidrs(cls, value: str) -> str:
        for part in filter(None, (p.strip() for p in value.split(","))):
            try:
                ip_network(part)
            except ValueError as exc:
                raise ValueError(f"{exc}; accepted: CIDRs separated by commas") from None
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _secrets(cls, value: SecretStr | None) -> SecretStr | None:
        for part in value.get_secret_value().split() if value else ():
            kind, _, text = part.partition("_")
            try:
                size = len(base64.b64decode(text, validate=True))
            except binascii.Error:
                size = 0
            if not (
                (kind == "whsec" and 24 <= size <= 64) or (kind == "whsk" and size in (32, 64))
            ):
                raise ValueError(
                    "is not a signing secret; accepted: whsec_ + base64 of 24-64 bytes, or "
                    "whsk_ + base64 of an ed25519 key"
                )
        return value

    @field_validator("webhook_bearers")
    @classmethod
    def _bearers(cls, value: SecretStr | None) -> SecretStr | None:
        for part in value.get_secret_value().split() if value else ():
            if not re.fullmatch(r"[\w.~+/-]+=*@https?://[^@]+", part, re.ASCII):
                raise ValueError(
                    "is not a list of bearer tokens; accepted: TOKEN@http(s)://..., several "
                    "separated by spaces"
                )
        return value

    @field_validator("webhook_ports")
    @classmethod
    def _ports(cls, value: str) -> str:
        for part in filter(None, (p.strip() for p in value.split(","))):
            found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
            if not found or not 1 <= int(found[1]) <= int(found[2] or found[1]) <= 65_535:
                raise ValueError(f"{part!r} is not a port; accepted: 443, 8000-8999")
        return value

    @field_validator("webhook_allow_hosts")
    @classmethod
    def _hosts(cls, value: str) -> str:
        for part in filter(None, (p.strip() for p in value.split(","))):
            if not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*\.?", part):
                raise ValueError(
                    f"{part!r} is not a host name; accepted: name or *.name, separated by commas"
                )
        return value

    @field_validator("webhook_retry_delays_s")
    @classmethod
    def _delays(cls, value: str) -> str:
        try:
            delays = [float(part) for part in value.split()]
        except ValueError:
            delays = []
        if not delays or not all(0 <= delay <= 604_800 for delay in delays):
            raise ValueError(
                "is not a list of delays; accepted: seconds up to 604800, separated by spaces"
            )
        return value

    @field_validator("webhook_proxy_url")
    @classmethod
    def _proxy_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"^https?://[^/\s?#]+/?$", value):
            raise ValueError("is not a proxy URL; accepted: http://[user:password@]host:port")
        return value

    @field_validator("webhook_encryption_key", "cache_encryption_keys")
    @classmethod
    def _keyring(cls, value: SecretStr | None) -> SecretStr | None:
        names: set[str] = set()
        for part in value.get_secret_value().split() if value else ():
            name, colon, key = part.rpartition(":")
            try:
                size = len(base64.b64decode(key, validate=True))
            except binascii.Error:
                size = 0
            if size != 32 or bool(colon) != (1 <= len(name) <= 32) or name in names:
                raise ValueError(
                    "is not a list of keys; accepted: base64 of 32 bytes, or several of them as "
                    "id:base64, each id once"
                )
            names.add(name)
        return value

    @field_validator("worker_functions")
    @classmethod
    def _function_paths(cls, value: str) -> str:
        for part in filter(None, (p.strip() for p in value.split(","))):
            _require_path(part)
        return value

    @field_validator("worker_crons")
    @classmethod
    def _cron_paths(cls, value: str) -> str:
        for part in filter(None, (p.strip() for p in value.split(";"))):
            path, equals, expression = part.partition("=")
            _require_path(path.strip())
            if not equals:
                raise ValueError("lacks '=<cron expression>' after package.module:coroutine")
            _require_cron(expression.strip())
        return value

    @field_validator("webhook_on_end")
    @classmethod
    def _job_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[\w.:<>-]{1,256}", value):
            raise ValueError("is not a job's name; accepted: 1-256 letters, digits and _ . : < > -")
        return value

    @field_validator("worker_heartbeat_timeout_s")
    @classmethod
    def _heartbeat_timeout(cls, value: float) -> float:
        if 0 < value < 5:
            raise ValueError("would kill workers while they start; accepted: 0 (off) or 5 to 3600")
        return value

    @field_validator("llm_batch_cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        _require_cron(value)
        return value


def _warn(event: str, **fields: str) -> None:
    """Log to structlog if the application configured it, else to `logging`, as cache/logs.py does."""
    structlog: Any = sys.modules.get("structlog")
    if structlog is not None and structlog.is_configured():
        structlog.get_logger(__name__).warning(event, **fields)
    else:
        text = " ".join(f"{key}={value!r}" for key, value in fields.items())
        logging.getLogger(__name__).warning("%s %s", event, text)


def _login_of(settings: Settings, server: str) -> tuple[str, str]:
    """Return the user name and the password that are set for `redis` or `cache_redis`."""
    username: str | None = getattr(settings, f"{server}_username")
    password: SecretStr | None = getattr(settings, f"{server}_password")
    return username or "", password.get_secret_value() if password else ""


def _with_login(url: str, username: str, password: str) -> str:
    """Add these credentials to a URL, unless it has its own or names an embedded server."""
    scheme, _, rest = url.partition("://")
    place = re.split(r"[/?]", rest, maxsplit=1)[0]
    if not (username or password) or "@" in place or scheme.startswith("embedded"):
        return url
    return f"{scheme}://{quote(username, safe='')}:{quote(password, safe='')}@{rest}"


def why_untrusted(path: Path) -> str | None:
    """
    Say why another user of the machine could have written a file, or a directory's files.

    None when only this user, root or the user's own group can write, and when the path is absent.
    """
    try:
        # For a symbolic link, check the link and its target.
        found = [path.lstat(), path.stat()]
    except OSError:
        return None
    for each in found:
        if each.st_uid not in {0, os.geteuid()}:
            return "it belongs to another user"
        own_group = each.st_gid in {0, os.getegid()}
        others = stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP
        if each.st_mode & others and not stat.S_ISLNK(each.st_mode):
            return "others may write to it"
    return None


def _require_path(path: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", path):
        raise ValueError(f"{path!r} is not of the form package.module:coroutine")


def _require_cron(expression: str) -> None:
    # The bounds of each field are checked where the schedule is built: the base
    # install has no cron library.
    if len(expression.split()) not in (5, 6):
        raise ValueError(f"{expression!r} is not a cron expression of five or six fields")


def variable_name(field: str) -> str:
    """Return a field's environment variable: `worker_count` -> `LETTA_WORKER_COUNT`."""
    return ENV_PREFIX + field.upper()


def accepted(field: FieldInfo) -> str:
    """Describe a field's accepted values: `float, > 0, <= 60` or `one of auto, json, console`."""
    annotation: Any = field.annotation
    if getattr(annotation, "__origin__", None) is Literal:
        return "one of " + ", ".join(annotation.__args__)
    names = [a.__name__ for a in getattr(annotation, "__args__", (annotation,))]
    kind = " or ".join(n for n in names if n != "NoneType")
    words = {"str": "text", "SecretStr": "secret text", "Path": "path", "bool": "true or false"}
    signs = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}
    bounds = [
        f"{sign} {getattr(m, name.lower()):g}"
        if abs(getattr(m, name.lower())) < 1e6
        else f"{sign} {getattr(m, name.lower())}"
        for m in field.metadata
        for name, sign in signs.items()
        if type(m).__name__ == name
    ]
    return ", ".join([words.get(kind, kind), *bounds])


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        text = problem["msg"].removeprefix("Value error, ")
        line = f"{variable_name(name)}: {text[0].lower() + text[1:]}"
        if name in Settings.model_fields and "accepted:" not in line:
            line += f"; accepted: {accepted(Settings.model_fields[name])}"
        lines.append(line)
    return "\n".join(lines)


def load_settings(**overrides: Any) -> Settings:
    """
    Read the settings again. `overrides` win over every other source.

    Logs variables that are misspelled, and those that have no effect beside the others.

    Raises:
        SettingsError: a value is wrong. One line per variable, never a secret's value.
    """
    settings = read_settings(**overrides)
    for variable, nearest in misspelled().items():
        _warn("settings.unknown_variable", variable=variable, nearest=nearest)
    for variable, reason in without_effect(settings).items():
        _warn("settings.no_effect", variable=variable, reason=reason)
    return settings


def read_settings(**overrides: Any) -> Settings:
    """As `load_settings`, but without its log lines: for a worker whose supervisor logged them."""
    secrets = _secrets_directory()
    try:
        return Settings(_secrets_dir=secrets if secrets.is_dir() else None, **overrides)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def _secrets_directory() -> Path:
    return Path(os.environ.get(ENV_PREFIX + "SECRETS_DIR", "/run/secrets"))


def misspelled() -> dict[str, str]:
    """The variables that are no settings but almost spelled like one, each with that one."""
    names = set(os.environ)
    with suppress(OSError):
        names |= {path.name for path in _secrets_directory().iterdir()}
    if Path(".env").is_file() and why_untrusted(Path(".env")) is None:
        from dotenv import dotenv_values

        names |= dotenv_values(".env", interpolate=False).keys()
    given = {name.upper() for name in names if name.upper().startswith(ENV_PREFIX)}
    unknown = given - {variable_name(field) for field in Settings.model_fields}
    found = {name: nearest_setting(name.removeprefix(ENV_PREFIX).lower()) for name in unknown}
    return {name: variable_name(field) for name, field in sorted(found.items()) if field}


def nearest_setting(name: str) -> str | None:
    """The field that is spelled almost like a name, or None."""
    from difflib import get_close_matches

    # Further apart are names of the Letta server: encryption_key, redis_port.
    near = get_close_matches(name, Settings.model_fields, n=1, cutoff=0.82)
    return near[0] if near else None


def _require_fields(names: Iterable[str]) -> None:
    for name in names:
        if name not in Settings.model_fields:
            nearest = nearest_setting(name)
            hint = f"; did you mean {nearest}?" if nearest else ""
            raise SettingsError(f"{name}: is not a setting{hint}")


def without_effect(settings: Settings) -> dict[str, str]:
    """The variables that were given but change nothing beside the others, each with the reason."""
    given = settings.model_fields_set
    return {
        variable_name(field): reason
        for fields, is_unused, reason in _WITHOUT_EFFECT
        if given.intersection(fields) and is_unused(settings)
        for field in fields
        if field in given
    }


def _urls(settings: Settings) -> str:
    return f"{settings.redis_url} {settings.cache_redis_url or ''}"


def _has_other_login(settings: Settings, server: str) -> bool:
    username, password = _login_of(settings, server)
    login = f"{quote(username, safe='')}:{quote(password, safe='')}@"
    return login not in (getattr(settings, f"{server}_url") or "")


_WITHOUT_EFFECT: tuple[tuple[tuple[str, ...], Callable[[Settings], bool], str], ...] = (
    (
        ("redis_username", "redis_password"),
        lambda settings: _has_other_login(settings, "redis"),
        "LETTA_REDIS_URL has its own login, or is embedded://",
    ),
    (
        ("cache_redis_username", "cache_redis_password"),
        lambda settings: _has_other_login(settings, "cache_redis"),
        "LETTA_CACHE_REDIS_URL is not set, has its own login, or is embedded://",
    ),
    (
        ("redis_ca_file", "redis_cert_file", "redis_key_file"),
        lambda settings: "rediss" not in _urls(settings),
        "no server's URL begins with rediss",
    ),
    (
        ("redis_sentinel_username", "redis_sentinel_password"),
        lambda settings: "+sentinel://" not in _urls(settings),
        "no server's URL names Sentinels",
    ),
    (
        ("redis_key_file",),
        lambda settings: settings.redis_cert_file is None,
        "LETTA_REDIS_CERT_FILE is not set",
    ),
    (
        ("webhook_key_file",),
        lambda settings: settings.webhook_cert_file is None,
        "LETTA_WEBHOOK_CERT_FILE is not set",
    ),
    (
        ("cache_local_max_bytes", "cache_local_share_objects"),
        lambda settings: settings.cache_local_ttl_s == 0,
        "LETTA_CACHE_LOCAL_TTL_S is 0",
    ),
    (
        ("webhook_retry_delays_s",),
        lambda settings: settings.webhook_retry_base_s is not None,
        "LETTA_WEBHOOK_RETRY_BASE_S replaces it",
    ),
    (
        ("webhook_breaker_open_s", "webhook_breaker_open_max_s"),
        lambda settings: settings.webhook_breaker_failures == 0,
        "LETTA_WEBHOOK_BREAKER_FAILURES is 0",
    ),
    (
        ("worker_crash_window_s",),
        lambda settings: settings.worker_max_crashes == 0,
        "LETTA_WORKER_MAX_CRASHES is 0",
    ),
)


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the process's settings, read once. `get_settings.cache_clear()` resets them."""
    return load_settings()
