"""
What `Lane` does, over redis-py's cluster client: the reads of one tick are one pipeline.

redis-py sends such a pipeline as one a node, side by side. A read alone is a
plain GET. Scripts go one by one: their keys are of one agent, so of one slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from cache.lane import Away
from cache.pool import OUTAGE, explain
from cache.tasks import end


class ClusterLane:
    """The same over a cluster client. A plain GET when alone, else one pipeline a tick."""

    def __init__(self, client: Any, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._waiting: list[tuple[Sequence[Any], asyncio.Future[Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def incarnation(self) -> bytes:
        # redis-py does not tell which node's run answered (docs/caching.md says what follows).
        return b"cluster\0"

    async def connect(self) -> None:
        try:
            await self._client.initialize()
            await self._client.ping()
        except OUTAGE as exc:
            raise Away(explain(exc)) from None

    async def execute(self, *args: Any) -> Any:
        if args[0] not in {"MGET", "GET"}:
            return await self._run(self._client.execute_command(*args))
        loop = asyncio.get_running_loop()
        call: asyncio.Future[Any] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((args, call))
        return await call

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        replies = [self.execute(*command) for command in commands]
        return list(await asyncio.gather(*replies))

    async def evalsha(self, sha: str, count: int, *args: Any) -> Any:
        return await self.execute("EVALSHA", sha, count, *args)

    async def eval(self, source: str, count: int, *args: Any) -> Any:
        return await self.execute("EVAL", source, count, *args)

    async def _run(self, command: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await command
        except ResponseError:
            raise
        except OUTAGE as exc:
            raise Away(explain(exc)) from None

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        task = asyncio.ensure_future(self._send(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[tuple[Sequence[Any], asyncio.Future[Any]]]) -> None:
        try:
            if len(batch) == 1:
                replies = [await self._run(self._client.execute_command(*batch[0][0]))]
            else:
                pipeline = self._client.pipeline()
                for args, _ in batch:
                    pipeline.execute_command(*args)
                replies = await self._run(pipeline.execute(raise_on_error=False))
        except (Away, RedisError) as exc:
            replies = [exc] * len(batch)
        for (_, call), reply in zip(batch, replies, strict=True):
            if call.done():
                continue
            if isinstance(reply, Exception):
                call.set_exception(reply if isinstance(reply, ResponseError) else Away(str(reply)))
            else:
                call.set_result(reply)

    async def close(self) -> None:
        await end(list(self._tasks))
