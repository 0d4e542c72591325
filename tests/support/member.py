"""
A process with a cache, for tests that stop, cut off and kill it.

    python -m tests.support.member <url> <prefix> <lease's seconds>

Prints "ready" on standard error. Then, for each line `invalidate <agent>` or `get <agent>` on
standard input, it prints the result, and "queued" when an invalidation waits for the server.
"""

from __future__ import annotations

import asyncio
import sys

from cache import Cache
from tests.support.caches import cache_on
from tests.support.wait import eventually


def say(line: str) -> None:
    # Not on standard output: log lines of another thread could interleave there.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


async def invalidate(cache: Cache, agent_id: str) -> None:
    call = asyncio.create_task(cache.agents.invalidate(agent_id))

    async def known() -> bool:
        return call.done() or cache.stats()["invalidations_missed"] > 0

    await eventually(known)
    if not call.done():
        say("queued")
    say(str(await call))


async def main(url: str, prefix: str, lease_s: float) -> None:
    async with cache_on(url, prefix, timeout_s=0.04, member_lease_s=lease_s) as cache:
        say("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, agent_id = line.split()
            if what == "get":
                say(str(await cache.agents.get(agent_id)))
            else:
                await invalidate(cache, agent_id)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
