"""Which connection a client's cache runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio.cluster import RedisCluster

from cache.connection.cluster import ClusterLane
from cache.connection.multiplexed import Lane
from cache.connection.pool import close_client, sibling
from cache.connection.protocol import Wire


def wire_on(client: Any, timeout_s: float) -> Wire:
    """Over connections of the client's own pool."""
    if isinstance(client, RedisCluster):
        return ClusterLane(client, timeout_s=timeout_s)
    return Lane(client, timeout_s=timeout_s)


@asynccontextmanager
async def wire_beside(client: Any, timeout_s: float, *, name: str) -> AsyncIterator[Wire]:
    """Over connections of its own to the same server, for another event loop."""
    if isinstance(client, RedisCluster):
        lane: Wire = ClusterLane(client, timeout_s=timeout_s)
        try:
            yield lane
        finally:
            await lane.close()
        return
    own = sibling(client, name=name, socket_timeout_s=timeout_s)
    lane = Lane(own, timeout_s=timeout_s)
    try:
        yield lane
    finally:
        await lane.close()
        await close_client(own)
