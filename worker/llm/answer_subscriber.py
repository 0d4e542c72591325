"""
Wakes a process's waiting callers when their request ids are published on a channel.

Pub/Sub can lose a message, so each caller also polls: the channel makes an answer
arrive quickly, the poll makes sure that it arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from cache.connection.pool import OUTAGE
from worker.helpers import keep_running

_READ_TIMEOUT_S = 1.0
_RECONNECT_S = 0.5


class AnswerSubscriber:
    """One subscription for all waiting callers; it runs only while somebody waits."""

    def __init__(self, client: Any, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watch(self, id_: str) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set whenever the id is published; clear it before polling again."""
        event = asyncio.Event()
        self._waiters[id_].add(event)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(keep_running("answers", self._listen))
        try:
            yield event
        finally:
            self._waiters[id_].discard(event)
            if not self._waiters[id_]:
                del self._waiters[id_]

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _listen(self) -> None:
        while self._waiters:
            try:
                await self._listen_once()
            except OUTAGE:
                await asyncio.sleep(_RECONNECT_S)

    async def _listen_once(self) -> None:
        # A subscribed connection cannot serve commands, so it never returns to the pool.
        async with self._client.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            # Messages from before the subscription are lost, so every caller polls once.
            self._wake_all()
            while self._waiters:
                message = await pubsub.get_message(
                    ignore_subscribe_messages=True, timeout=_READ_TIMEOUT_S
                )
                if message is not None:
                    for event in self._waiters.get(message["data"].decode(), ()):
                        event.set()

    def _wake_all(self) -> None:
        for events in self._waiters.values():
            for event in events:
                event.set()
