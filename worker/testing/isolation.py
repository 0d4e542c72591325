"""Isolates a testing queue: its own database, and settings that read nothing outside the test."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cache.connection import embedded
from cache.errors import EmbeddedServerError
from worker.errors import InvalidArgument

if TYPE_CHECKING:
    from settings import Settings

# Database 0 is for direct uses of embedded://.
_free_databases = set(range(1, 16))

_LOOPBACK = "127.0.0.0/8,::1/128"
_SETTINGS: Mapping[str, Any] = {
    "webhook_allow_cidrs": _LOOPBACK,
    "llm_allow_cidrs": _LOOPBACK,
    # A closed port: no request leaves the machine unless the test names a provider.
    "openai_base_url": "http://127.0.0.1:9/v1",
    "anthropic_base_url": "http://127.0.0.1:9",
    "llm_batch_max_age_s": 0.05,
    "llm_poll_interval_s": 0.05,
    # No other worker could know a job that this one does not know.
    "worker_park_s": 0,
}
_SETTINGS_WITHOUT_BACKOFF: Mapping[str, Any] = {
    "webhook_retry_base_s": 0.01,
    "webhook_retry_cap_s": 0.01,
    "webhook_retry_after_max_s": 0.01,
    "webhook_breaker_open_s": 0.05,
    "webhook_breaker_open_max_s": 0.05,
}


@contextmanager
def own_database() -> Iterator[str]:
    """Return the URL of a database that nothing else in this process uses."""
    if not _free_databases:
        raise EmbeddedServerError("15 testing queues are open, the most that one process can have")
    number = min(_free_databases)
    _free_databases.remove(number)
    try:
        yield f"{_server_url()}?db={number}"
    finally:
        _free_databases.add(number)


@functools.cache
def _server_url() -> str:
    """Start the server once; it runs until exit, because a start takes longer than most tests."""
    return embedded.acquire("embedded://")


def isolated_settings(url: str, overrides: Mapping[str, Any], *, retry_at_once: bool) -> Settings:
    """
    Build settings for the server at `url` from the arguments alone.

    Raises:
        InvalidArgument: an override is not a field of `Settings`, or is `redis_url`.
    """
    from settings import Settings

    unknown = sorted(set(overrides) - set(Settings.model_fields))
    if unknown:
        raise InvalidArgument(f"not a field of Settings: {', '.join(unknown)}")
    if "redis_url" in overrides:
        raise InvalidArgument("redis_url cannot be set: a testing queue has its own server")
    quick = _SETTINGS_WITHOUT_BACKOFF if retry_at_once else {}
    values = {**_SETTINGS, **quick, **overrides, "redis_url": url}
    # No variable has this prefix, and no file is read.
    return Settings(_env_prefix="_NO_VARIABLE_", _env_file=None, _secrets_dir=None, **values)
