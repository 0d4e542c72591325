"""
A process with a cache, for tests that stop and kill it in the middle of a write.

    python -m tests.support.writer <url> <prefix> <intents' seconds>

Prints "ready" on standard error. Then, for each line `begin <agent>`, `holds` or `end` on
standard input, it prints the result.
"""

from __future__ import annotations

import asyncio
import sys

from tests.support.caches import cache_on


def say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


async def main(url: str, prefix: str, intent_s: float) -> None:
    async with cache_on(url, prefix, intent_s=intent_s) as cache:
        token = await cache.begin_write()
        say("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, *agents = line.split()
            if what == "begin":
                token = await cache.begin_write(agents=agents)
                say(str(token.holds))
            elif what == "holds":
                say(str(token.holds))
            else:
                say(str(await cache.end_write(token)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
