"""
One of several processes that ask for the same missing key at the same moment.

    python -m tests.support.stampede <url> <prefix> <tasks> <processes> <loader's seconds>

Prints, as JSON, the time from the start signal to the last answer.
"""

from __future__ import annotations

import asyncio
import json
import sys

from cache import Cache, CacheOptions
from cache.connection.pool import PoolOptions, open_pool
from tests.support.wait import eventually


async def main(url: str, prefix: str, tasks: int, processes: int, loader_s: float) -> None:
    loop = asyncio.get_running_loop()
    async with (
        open_pool(url, PoolOptions(), name="stampede") as client,
        # 400 tasks on a busy machine are no outage: the loaders are what is counted here.
        Cache(client, CacheOptions(prefix=prefix, timeout_s=5.0)) as cache,
    ):

        async def load() -> dict[str, int]:
            await client.incr(prefix + "loads")
            await asyncio.sleep(loader_s)
            return {"answer": 42}

        await client.incr(prefix + "ready")

        async def everyone_is_there() -> bool:
            return int(await client.get(prefix + "ready")) == processes

        await eventually(everyone_is_there)
        start = loop.time()
        answers = await asyncio.gather(
            *(cache.agents.get_or_load("a1", load) for _ in range(tasks))
        )
        wall_s = loop.time() - start
        assert answers == [{"answer": 42}] * tasks
        sys.stdout.write(json.dumps({"wall_s": wall_s, "stats": cache.stats()}))


if __name__ == "__main__":
    url, prefix, tasks, processes, loader_s = sys.argv[1:]
    asyncio.run(main(url, prefix, int(tasks), int(processes), float(loader_s)))
