"""
Wakes the waiters of one process when their ids appear on a channel.

A message can be lost (Pub/Sub keeps none), so a waiter also looks for itself
now and then: the channel makes it fast, the look makes it certain.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from cache.connection.pool import OUTAGE

_READ_TIMEOUT_S = 1.0
_RECONNECT_S = 0.5


class AnswerSubscriber:
    """One subscription for all waiters; it runs only while somebody waits."""

    def __init__(self, client: Any, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watch(self, id_: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever the id is told; clear it before looking again."""
        event = asyncio.Event()
        self._waiters[id_].add(event)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen(), name="notices")
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
        # Its own connection: a subscribed one never goes back to the pool.
        async with self._client.pubsub() as pubsub:
            await pubsub.subscribe(self._channel)
            # What was told before the subscription stood is looked for once.
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
