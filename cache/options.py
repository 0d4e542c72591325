"""
Defines the options of a cache. `open_cache` makes them from the settings.

Times are seconds, sizes bytes. The defaults equal those of the settings, so
`Cache(client)` behaves as `open_cache()` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cache.encoding.encryption import Keyring
from cache.keys import CACHE_PREFIX


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """
    The copies inside the process. Off while `ttl_s` is 0.

    Args:
        ttl_s: a copy is used at most this long, which bounds its staleness.
        max_bytes: encoded size of all copies together. The least recently used are dropped.
        share_objects: return the same decoded object to every caller, who must not change it.
            Otherwise each caller gets a newly decoded value.
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
    The options of one cache.

    Args:
        enabled: False sends every read to its loader and stores nothing.
        ttl_s: TTL of a value, unless the call passes another.
        negative_ttl_s: TTL of the value None; 0 does not store it.
        ttl_jitter: each TTL is shortened at random by up to this share.
        early_refresh_beta: XFetch's beta. 1 is the optimum of its paper; higher refreshes
            earlier; 0 never refreshes early.
        lease_s: if the process that loads a value dies, another loads it after this. A running
            loader renews its lease every third of it.
        loader_timeout_s: hard limit of a loader; None sets no limit.
        intent_s: an intent outlives its process by this, renewed while the write runs.
        cut_off: when an intent cannot be registered, "serve" lets the write go on, "refuse"
            raises CacheUnavailable.
        timeout_s: a call waits this long for the server, then goes to its loader.
        max_value_bytes: larger values (as stored) are returned but not stored.
        max_memory_share: on a server that evicts nothing, such as the queue's, nothing new is
            stored while it uses more than this share of its maxmemory; 0 sets no limit.
        max_dependents: most agents in the index of one dependency. Beyond it, invalidating the
            dependency invalidates everything.
        schema_version: version of the cached models. Values of another version are misses.
        compress_min_bytes: larger values are compressed with zstd; 0 compresses none.
        keyring: encrypts stored values; None stores plaintext.
        message_window: most messages stored of one conversation.
        totals_interval_s: a process adds its counters to those on the server this often.
    """

    enabled: bool = True
    prefix: str = CACHE_PREFIX
    ttl_s: float = 600.0
    negative_ttl_s: float = 10.0
    ttl_jitter: float = 0.1
    early_refresh_beta: float = 1.0
    lease_s: float = 3.0
    loader_timeout_s: float | None = None
    intent_s: float = 30.0
    cut_off: Literal["serve", "refuse"] = "serve"
    timeout_s: float = 0.04
    max_value_bytes: int = 1024 * 1024
    max_memory_share: float = 0.5
    max_dependents: int = 10_000
    schema_version: int = 1
    compress_min_bytes: int = 0
    keyring: Keyring | None = None
    message_ttl_s: float = 3600.0
    message_window: int = 200
    session_ttl_s: float = 1800.0
    totals_interval_s: float = 10.0
    local: LocalOptions = field(default_factory=LocalOptions)
