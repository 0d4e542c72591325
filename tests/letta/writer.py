"""
A second Letta process: makes random writes when it is told to.

Run with LETTA_PG_URI, LETTA_REDIS_URL and the id of a user. Each line on its input is a
seed and a number of writes; it answers with how many it has done, or dies in one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from random import Random
from typing import Any


async def main(user_id: str) -> None:
    from letta_redis import install

    runtime = install().runtime
    import letta.server.server  # noqa: F401
    from letta.services.user_manager import UserManager

    from tests.letta.operations import World

    await runtime.start()
    user = await UserManager().get_actor_by_id_async(user_id)
    _say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        order: dict[str, Any] = json.loads(line)
        world = World(Random(order["seed"]), user)
        world.adopt(order["rows"])
        done = 0
        for _ in range(order["writes"]):
            _say("write")
            with suppress(Exception):  # names that are taken, rows that are gone
                await world.draw()[1]()
                done += 1
        _say(json.dumps({"done": done, "rows": world.share()}))
    await runtime.stop()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
