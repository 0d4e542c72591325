"""A worker without jobs asks for little, and still finds what nobody told it of."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from cache.keys import QueueKeys
from cache.pool import PoolOptions, open_pool
from tests.support.engine import queue_of, running
from tests.support.wait import eventually
from worker.effects.queue import job_body
from worker.engine import EngineOptions
from worker.engine.records import EngineKeys
from worker.engine.wake import Listener

OFTEN = EngineOptions(poll_s=0.05, beat_s=60)


async def double(ctx: dict[str, Any], n: int) -> int:
    return 2 * n


async def calls(client: Any, command: str) -> int:
    stats = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


async def test_a_look_at_an_empty_queue_is_one_command(private_valkey_url: str) -> None:
    async with (
        open_pool(private_valkey_url, PoolOptions(), name="test") as client,
        running(client, "t:", [double], options=OFTEN),
    ):
        await eventually(lambda: calls(client, "exists"))
        looks, scripts = await calls(client, "exists"), await calls(client, "evalsha")

        async def looked_often() -> bool:
            return await calls(client, "exists") >= looks + 50

        await eventually(looked_often, deadline_s=30)
        assert await calls(client, "evalsha") - scripts <= 2


async def test_a_job_without_token_or_listener_is_found(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await client.set(f"{prefix}queue:listener", "another worker, which is gone")
    async with running(client, prefix, [double], options=OFTEN):
        # As a client leaves it whose token was popped by a worker that died.
        await client.set(f"{prefix}job:a", job_body("double", [4], {}, now_ms=1))
        await client.zadd(f"{prefix}queue", {"a": 5})
        assert await queue.job("a").result(timeout_s=10) == 8


async def test_only_changes_of_queues_are_hints(client: Any, prefix: str) -> None:
    hints: list[bool] = []
    listener = Listener(client, EngineKeys(QueueKeys(prefix)), lambda: hints.append(True))
    task = asyncio.create_task(listener.run())
    score = itertools.count()
    try:

        async def heard() -> bool:
            await client.zadd(f"{prefix}queue:low", {"a": next(score)})
            return bool(hints)

        await eventually(heard)
        for n in range(50):
            await client.set(f"{prefix}queue:health-check", n)
        before = len(hints)
        # What comes later is heard later: by then the others were.
        await client.zadd(f"{prefix}queue", {"b": 1})

        async def heard_again() -> bool:
            return len(hints) > before

        await eventually(heard_again)
        assert len(hints) < 10
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
