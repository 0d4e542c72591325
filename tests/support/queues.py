"""Clients of the queue, and the stores behind them, which only workers reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

import worker
from cache.connection.pool import open_pool
from settings import Settings
from tests.support.options import options_of
from worker.app.composition import Stores, build_queue, build_stores
from worker.app.options import QueueOptions, pool_options, queue_options
from worker.client import JobQueue
from worker.keys import QUEUE_TAG, QueueKeys

_STORES: WeakKeyDictionary[JobQueue, Stores] = WeakKeyDictionary()


def queue_of(client: Any, prefix: str, options: QueueOptions | None = None) -> JobQueue:
    """The queue of one client of Redis, under a test's own prefix."""
    chosen = options or options_of()
    stores = build_stores(client, chosen, QueueKeys(prefix))
    queue = build_queue(stores, chosen)
    _STORES[queue] = stores
    return queue


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[JobQueue]:
    """`worker.open_queue`, whose stores `stores_of` gives, on connections of their own."""
    async with (
        worker.open_queue(settings) as queue,
        open_pool(
            settings.redis_url, pool_options(settings), name="test-stores", tag=QUEUE_TAG
        ) as client,
    ):
        _STORES[queue] = build_stores(client, queue_options(settings))
        yield queue


def stores_of(queue: JobQueue) -> Stores:
    """What is behind a queue that this module opened."""
    return _STORES[queue]
