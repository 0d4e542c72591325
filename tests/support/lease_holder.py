"""
Holds a named lease in a process of its own, and tells on standard output what becomes of it.

    python -m tests.support.lease_holder <url> <prefix> <name> <ttl_s>

Prints `token <number>` when it has the lease, and `lost` when it is told that it has not any more.
"""

from __future__ import annotations

import asyncio
import sys

from cache import LeaseLost
from tests.support.caches import cache_on


async def hold(url: str, prefix: str, name: str, ttl_s: float) -> None:
    async with cache_on(url, prefix) as cache:
        try:
            async with cache.lease(name, ttl_s=ttl_s) as lease:
                print("token", lease.token, flush=True)  # noqa: T201
                await asyncio.Event().wait()
        except LeaseLost:
            print("lost", flush=True)  # noqa: T201


if __name__ == "__main__":
    URL, PREFIX, NAME, TTL_S = sys.argv[1:]
    asyncio.run(hold(URL, PREFIX, NAME, float(TTL_S)))
