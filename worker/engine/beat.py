"""A worker's heartbeat key, arq's health key, and the housekeeping that rides along."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from cache.pool import OUTAGE
from cache.scripts import load
from worker.engine.options import EngineOptions
from worker.engine.records import EngineKeys
from worker.engine.tasks import end
from worker.engine.wake import Listener

_BEAT = load("worker.engine", "beat")
_LEAVE = load("worker.engine", "leave")
_MISSED = 3


class Heart:
    """Beats from the event loop: a blocked loop has no heartbeat."""

    def __init__(
        self,
        client: Any,
        keys: EngineKeys,
        options: EngineOptions,
        *,
        worker_id: str,
        health_key: str,
        report: Callable[[], dict[str, Any]],
        hint: Callable[[], None],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        base = keys.base
        self._keys = [base.worker(worker_id), base.workers, base.abort, keys.listener]
        self._leave_keys = [
            *(base.worker(worker_id), base.workers, keys.listener, health_key),
            base.last_turn(worker_id),
        ]
        self._prefix = base.prefix
        self._interval_s = options.beat_s
        self._report = report
        self._started = time.time()
        self._listener = Listener(client, keys, hint)
        self._listening: asyncio.Task[None] | None = None

    async def run(self, also: Callable[[], Any]) -> None:
        """Beat until cancelled; `also` is awaited with each beat."""
        try:
            while True:
                try:
                    await self.beat()
                    await also()
                except OUTAGE:
                    pass  # the pump tells
                await asyncio.sleep(self._interval_s)
        finally:
            await end(self._listening)
            self._listening = None

    async def beat(self) -> None:
        state = {
            "worker_id": self._worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": round(self._started, 3),
            **self._report(),
        }
        ttl_ms = int(self._interval_s * 1000 * _MISSED)
        args = [self._prefix, self._worker_id, json.dumps(state), ttl_ms, 1]
        self._listen(bool(await _BEAT.run(self._client, self._keys, args)))

    async def leave(self) -> None:
        await _LEAVE.run(self._client, self._leave_keys, [self._worker_id])

    def _listen(self, listen: bool) -> None:
        if listen and (self._listening is None or self._listening.done()):
            self._listening = asyncio.create_task(self._listener.run())
        elif not listen and self._listening is not None:
            self._listening.cancel()
