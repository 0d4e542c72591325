"""
How a cache behaves: plain values, handed in. `open_cache` makes them from the settings.

Times are seconds, sizes bytes. The defaults are those of the settings, so that
`Cache(client)` behaves as `open_cache()` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cache.encoding.encryption import Keyring
from cache.keys import CACHE_PREFIX


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """
    The level inside the process. Off while `ttl_s` is 0.

    Args:
        ttl_s: a copy is used at most this long; the bound of its staleness.
        max_bytes: encoded size of all copies together; the least recently used go first.
        share_objects: hand the same decoded object to every caller, who must not change it.
            Without, each caller gets a value decoded for him alone.
    """

    ttl_s: float = 0.0
    max_bytes: int = 64 * 1024 * 1024
    share_objects: bool = False

    @property
    def enabled(self) -> bool:
        return self.ttl_s > 0


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """
    Args:
        enabled: False sends every read to its loader and stores nothing.
        ttl_s: life of a value, unless the call names another.
        negative_ttl_s: life of the answer None; 0 does not keep it.
        ttl_jitter: a life is shortened at random by up to this share.
        early_refresh_beta: XFetch's beta: 1 is the optimum of its paper, more refreshes
            earlier, 0 never.
        lease_s: a loader that died is replaced after this; a living one renews at a third.
        loader_timeout_s: hard limit of a loader; None waits as long as it takes.
        member_lease_s: an invalidation that cannot arrive is made good for everyone within
            this, when this process has not renewed its lease; 0: not at all, see settings.
        timeout_s: how long a call waits for the server before it goes to its loader.
        max_value_bytes: larger values (as stored) are handed on but not kept.
        max_dependents: agents that one dependency lists; past it, invalidating it means all.
        schema_version: of the cached models; values of another version are misses.
        compress_min_bytes: larger values are compressed with zstd; 0 never.
        keyring: encrypts what is stored; None stores it in clear.
        message_window: most messages kept of one conversation.
    """

    enabled: bool = True
    prefix: str = CACHE_PREFIX
    ttl_s: float = 600.0
    negative_ttl_s: float = 10.0
    ttl_jitter: float = 0.1
    early_refresh_beta: float = 1.0
    lease_s: float = 3.0
    loader_timeout_s: float | None = None
    member_lease_s: float = 3.0
    timeout_s: float = 0.04
    max_value_bytes: int = 1024 * 1024
    max_dependents: int = 10_000
    schema_version: int = 1
    compress_min_bytes: int = 0
    keyring: Keyring | None = None
    message_ttl_s: float = 3600.0
    message_window: int = 200
    session_ttl_s: float = 1800.0
    local: LocalOptions = field(default_factory=LocalOptions)
