"""Runs workers of the engine inside the test's process, under the test's own prefix."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from worker.engine import EngineOptions, Worker

QUICK = EngineOptions(lease_s=1.0, poll_s=0.5, abort_poll_s=0.05, heartbeat_s=0.3)


def new_worker(client: Any, prefix: str, functions: Sequence[Any], **kwargs: Any) -> Worker:
    kwargs.setdefault("options", QUICK)
    kwargs.setdefault("allow_abort_jobs", True)
    return Worker(functions, redis_pool=client, prefix=prefix, handle_signals=False, **kwargs)


async def burst(client: Any, prefix: str, functions: Sequence[Any], **kwargs: Any) -> Worker:
    """Run a worker until the queue is empty. Return the worker."""
    worker = new_worker(client, prefix, functions, burst=True, **kwargs)
    async with asyncio.timeout(100):
        await worker.main()
    return worker


@asynccontextmanager
async def running(
    client: Any, prefix: str, functions: Sequence[Any], **kwargs: Any
) -> AsyncIterator[Worker]:
    """Run a worker until the end of the block, then drain it at once."""
    worker = new_worker(client, prefix, functions, **kwargs)
    main = asyncio.create_task(worker.main())
    try:
        yield worker
    finally:
        worker.force()
        async with asyncio.timeout(60):
            await main
