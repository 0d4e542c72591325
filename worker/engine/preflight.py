"""Checks at the start that the server is safe for a queue."""

from __future__ import annotations

from typing import Any

from cache.logs import get_logger
from worker.errors import UnsafeServer

log = get_logger(__name__)


async def check_server(client: Any, *, allow_eviction: bool) -> None:
    """
    Refuse a server that may evict jobs; warn about one without an append-only file.

    Raises:
        UnsafeServer: `maxmemory-policy` is not noeviction, and eviction is not allowed.
    """
    memory = await client.info("memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and not allow_eviction:
        raise UnsafeServer(
            f"the queue's server has maxmemory-policy {policy}: it may drop queued jobs without an "
            "error. Set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in its "
            "configuration file), give the cache a server of its own (LETTA_CACHE_REDIS_URL), or "
            "accept lost jobs with LETTA_QUEUE_ALLOW_EVICTION=true"
        )
    if policy != "noeviction":
        log.warning("queue.server_may_evict", maxmemory_policy=policy)
    persistence = await client.info("persistence")
    if not persistence.get("aof_enabled"):
        log.warning(
            "queue.server_without_aof",
            remedy="set appendonly yes: without it a restart of the server loses jobs",
        )
