"""
Opens a cache from the settings. The only module of the cache that reads them.

Services import it at their start, so redis-py and the cache are imported when one is opened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cache.encoding.encryption import Keyring
from cache.options import CacheOptions, LocalOptions

if TYPE_CHECKING:
    from cache.connection.pool import PoolOptions
    from cache.invalidator import Invalidator
    from cache.service import Cache
    from cache.usage import UsageReader
    from settings import Settings

# The commands and the backplane hold one connection each while the cache is open.
_RESERVED_CONNECTIONS = 2
Opened = TypeVar("Opened", bound="Invalidator")


@asynccontextmanager
async def open_cache(settings: Settings | None = None) -> AsyncIterator[Cache]:
    """
    Open a cache on `cache_redis_url`, or else on `redis_url`. Close it after the block.

    Opens even while the server is away: reads go to their loaders until it is there.

    Raises:
        SettingsError: a setting is wrong.
        MissingExtra: a setting needs an optional package that is not installed.
        EmbeddedServerError: the server of an embedded:// URL did not start.
    """
    from cache.service import Cache

    async with _open(Cache, settings) as cache:
        yield cache


@asynccontextmanager
async def open_invalidator(settings: Settings | None = None) -> AsyncIterator[Invalidator]:
    """
    Open what invalidates and nothing else, for a process that only writes. As `open_cache`.

    It holds one connection, and sends nothing while nobody calls it.
    """
    from cache.invalidator import Invalidator

    async with _open(Invalidator, settings) as invalidator:
        yield invalidator


@asynccontextmanager
async def open_usage(settings: Settings) -> AsyncIterator[UsageReader]:
    """Open a reader of the cache's hit rates and memory, for a process that does not use the cache."""
    from cache.connection.pool import open_pool
    from cache.usage import read_usage

    url = settings.cache_redis_url or settings.redis_url
    async with open_pool(url, pool_options(settings), name="letta-cache-usage") as client:
        yield partial(read_usage, client)


@asynccontextmanager
async def _open(kind: type[Opened], settings: Settings | None) -> AsyncIterator[Opened]:
    from cache.connection.pool import open_pool

    if settings is None:
        from settings import get_settings

        settings = get_settings()
    url = settings.cache_redis_url or settings.redis_url
    pool = pool_options(settings)
    pool = replace(pool, max_connections=pool.max_connections + _RESERVED_CONNECTIONS)
    async with (
        open_pool(url, pool, name="letta-cache") as client,
        kind(client, cache_options(settings)) as opened,
    ):
        yield opened


def pool_options(settings: Settings) -> PoolOptions:
    """The connection settings of every client, the queue's too."""
    from cache.connection.pool import PoolOptions

    password = settings.redis_sentinel_password
    return PoolOptions(
        connect_timeout_s=settings.redis_connect_timeout_s,
        socket_timeout_s=settings.redis_socket_timeout_s,
        health_check_interval_s=settings.redis_health_check_interval_s,
        max_connections=settings.redis_max_connections,
        retries=settings.redis_retries,
        ca_file=settings.redis_ca_file,
        cert_file=settings.redis_cert_file,
        key_file=settings.redis_key_file,
        sentinel_username=settings.redis_sentinel_username,
        sentinel_password=None if password is None else password.get_secret_value(),
    )


def cache_options(settings: Settings) -> CacheOptions:
    """
    The cache's options from the settings.

    Raises:
        MissingExtra: encryption keys are set, but cryptography is not installed.
    """
    keys = settings.cache_encryption_keys
    return CacheOptions(
        enabled=settings.use_agent_cache,
        ttl_s=settings.cache_agent_ttl_s,
        negative_ttl_s=settings.cache_negative_ttl_s,
        ttl_jitter=settings.cache_ttl_jitter,
        early_refresh_beta=settings.cache_early_refresh_beta,
        lease_s=settings.cache_lease_s,
        loader_timeout_s=settings.cache_loader_timeout_s,
        intent_s=settings.cache_intent_s,
        cut_off=settings.cache_cut_off,
        timeout_s=settings.cache_timeout_s,
        max_value_bytes=settings.cache_max_value_bytes,
        max_memory_share=settings.cache_max_memory_share,
        max_dependents=settings.cache_max_dependents,
        schema_version=settings.cache_schema_version,
        compress_min_bytes=settings.cache_compress_min_bytes,
        keyring=Keyring.parse(keys.get_secret_value()) if keys else None,
        message_ttl_s=settings.cache_message_ttl_s,
        message_window=settings.cache_message_window,
        session_ttl_s=settings.cache_session_ttl_s,
        local=LocalOptions(
            ttl_s=settings.cache_local_ttl_s,
            max_bytes=settings.cache_local_max_bytes,
            share_objects=settings.cache_local_share_objects,
        ),
    )
