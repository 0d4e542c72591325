"""
Caches agent states and messages in Redis: nothing stale, one loader at a time, no errors of its own.

    async with open_cache() as cache:
        state = await cache.agents.get_or_load(agent_id, load)
        await cache.agents.invalidate(agent_id)
"""

from cache.coherence.results import Lease
from cache.encoding.encryption import Keyring
from cache.errors import (
    CacheError,
    CodecError,
    EmbeddedServerError,
    InvalidName,
    LoaderTimeout,
    MissingExtra,
    NotEncodable,
    RedisUnavailable,
    UnsupportedRedisURL,
)
from cache.opening import open_cache
from cache.options import CacheOptions, LocalOptions
from cache.service import Cache

__all__ = [
    "Cache",
    "CacheError",
    "CacheOptions",
    "CodecError",
    "EmbeddedServerError",
    "InvalidName",
    "Keyring",
    "Lease",
    "LoaderTimeout",
    "LocalOptions",
    "MissingExtra",
    "NotEncodable",
    "RedisUnavailable",
    "UnsupportedRedisURL",
    "open_cache",
]
