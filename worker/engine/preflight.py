"""Checks at the start that the server is safe for a queue, and lets this client work on it."""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError

from cache.connection.owner import OwnerPool
from cache.connection.readiness import refuse_for_good
from cache.connection.siblings import url_of
from cache.logs import get_logger
from worker.errors import UnsafeServer
from worker.queue.rights import require_commands, require_rights

log = get_logger(__name__)


async def check_server(client: Any, queue: str, *, allow_eviction: bool) -> None:
    """
    Refuse a server that may evict jobs or does not let us work; warn about one without an AOF.

    Raises:
        RedisRefused: the user lacks a right, the service lacks what the queue needs, or the URL of
            a single server names a node of a cluster.
        UnsafeServer: `maxmemory-policy` is not noeviction, and eviction is not allowed.
    """
    facts = await require_usable(client, queue, allow_eviction=allow_eviction)
    policy = _eviction_of(facts)
    if policy != "noeviction":
        log.warning("queue.server_may_evict", maxmemory_policy=policy)
    if not facts.get("aof_enabled"):
        log.warning(
            "queue.server_without_aof",
            remedy="set appendonly yes: without it a restart of the server loses jobs",
        )


async def require_usable(client: Any, queue: str, *, allow_eviction: bool) -> dict[str, Any]:
    """Return the server's INFO; raises as `check_server`."""
    url = url_of(client)
    try:
        facts: dict[str, Any] = await client.info()
        if facts.get("cluster_enabled") and not isinstance(client.connection_pool, OwnerPool):
            raise RedisError("cluster_enabled:1")
        await client.time()
        await require_rights(client, queue)
        await require_commands(client, queue)
    except RedisError as exc:
        refuse_for_good(exc, url)
        raise
    policy = _eviction_of(facts)
    if policy != "noeviction" and not allow_eviction:
        raise UnsafeServer(
            f"the queue's server has maxmemory-policy {policy}: it may drop queued jobs without an "
            "error. Set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in its "
            "configuration file), give the cache a server of its own (LETTA_CACHE_REDIS_URL), or "
            "accept lost jobs with LETTA_QUEUE_ALLOW_EVICTION=true"
        )
    return facts


def _eviction_of(facts: dict[str, Any]) -> str:
    return str(facts.get("maxmemory_policy", "noeviction"))
