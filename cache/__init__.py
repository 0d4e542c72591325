"""
Caches agent states and messages in Redis: nothing stale, one loader at a time, no errors of its own.

    async with open_cache() as cache:
        state = await cache.agents.get_or_load(agent_id, load)
        await cache.agents.invalidate(agent_id)

Each name is loaded at its first use, because redis-py and asyncio take longer to
import than everything here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache.coherence.intents import WriteToken
    from cache.coherence.results import Lease
    from cache.encoding.encryption import Keyring
    from cache.errors import (
        CacheError,
        CacheUnavailable,
        CodecError,
        EmbeddedServerError,
        InvalidName,
        LeaseHeld,
        LeaseLost,
        LoaderTimeout,
        MissingExtra,
        NotEncodable,
        RedisUnavailable,
        UnsupportedRedisURL,
    )
    from cache.invalidator import Invalidator
    from cache.leases import NamedLease
    from cache.opening import open_cache, open_invalidator
    from cache.options import CacheOptions, LocalOptions
    from cache.service import Cache

__all__ = [
    "Cache",
    "CacheError",
    "CacheOptions",
    "CacheUnavailable",
    "CodecError",
    "EmbeddedServerError",
    "InvalidName",
    "Invalidator",
    "Keyring",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "LoaderTimeout",
    "LocalOptions",
    "MissingExtra",
    "NamedLease",
    "NotEncodable",
    "RedisUnavailable",
    "UnsupportedRedisURL",
    "WriteToken",
    "open_cache",
    "open_invalidator",
]

# Where the names are, the cheapest import first.
_HOMES = (
    "errors", "options", "coherence.results", "encoding.encryption", "opening", "invalidator", "service",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                found = globals()[name] = getattr(module, name)
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
