"""Writes a worker's heartbeat key and arq's health key, and runs periodic housekeeping."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import OutOfMemoryError

from cache.connection.owner import OwnerPool
from cache.connection.pool import OUTAGE
from cache.connection.scripts import load
from cache.connection.tasks import end
from worker.engine.listen import Listener
from worker.engine.options import EngineOptions
from worker.engine.vitals import Vitals
from worker.helpers import keep_running
from worker.keys import EngineKeys

_BEAT = load(__package__, "beat")
_HOUSEKEEPING = load(__package__, "housekeeping", "..queue")
_LEAVE = load(__package__, "leave", "..queue")
_MISSED = 3
# Every this many heartbeats, the listener's lease is renewed and stale entries are removed.
HOUSEKEEPING = 4


class Heartbeat:
    """Sends heartbeats from the event loop, so that a blocked loop has none."""

    def __init__(
        self,
        client: Any,
        keys: EngineKeys,
        options: EngineOptions,
        *,
        worker_id: str,
        report: Callable[[], dict[str, Any]],
        hint: Callable[[], None],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        base = keys.base
        self._key = base.worker(worker_id)
        self._keys = [base.workers, base.abort, keys.listener]
        self._prefix = base.prefix
        self._interval_s = options.heartbeat_s
        self._report = report
        self._started = time.time()
        self._vitals = Vitals()
        self._lag_s = 0.0
        # Stock clients cannot reach a cluster's queue: there is nothing to listen for.
        is_cluster = isinstance(client.connection_pool, OwnerPool)
        self._listener = None if is_cluster else Listener(client, keys, hint)
        self._listening: asyncio.Task[None] | None = None

    async def run(self, also: Callable[[float], Any], *, every_s: float) -> None:
        """
        Send heartbeats until canceled.

        `also` is awaited about every `every_s`: a whole number of heartbeats, at most
        four. Its argument is the seconds until its next call.
        """
        heartbeats_between = max(1, min(HOUSEKEEPING, int(every_s / self._interval_s)))
        heartbeats = 0
        try:
            while True:
                try:
                    await self.heartbeat()
                    if heartbeats % HOUSEKEEPING == 0:
                        await self.keep_house()
                    if heartbeats % heartbeats_between == 0:
                        await also(heartbeats_between * self._interval_s)
                    heartbeats += 1
                except OUTAGE:
                    heartbeats = 0  # the poll logs the outage; afterwards all is due again
                asleep = time.monotonic()
                await asyncio.sleep(self._interval_s)
                self._lag_s = time.monotonic() - asleep - self._interval_s
        finally:
            await end(self._listening, limit_s=float("inf"))
            self._listening = None

    async def heartbeat(self) -> None:
        state = {
            "worker_id": self._worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": round(self._started, 3),
            **self._vitals.read(self._lag_s),
            **self._report(),
        }
        await beat(self._client, self._key, json.dumps(state), self._ms(_MISSED))

    async def keep_house(self) -> None:
        args = [self._prefix, self._worker_id, self._ms(_MISSED * HOUSEKEEPING)]
        self._listen(bool(await _HOUSEKEEPING.run(self._client, self._keys, args)))

    def _ms(self, heartbeats: int) -> int:
        return int(self._interval_s * 1000 * heartbeats)

    def _listen(self, listen: bool) -> None:
        if self._listener is None:
            return
        if listen and (self._listening is None or self._listening.done()):
            self._listening = asyncio.create_task(keep_running("listener", self._listener.run))
        elif not listen and self._listening is not None:
            self._listening.cancel()


async def beat(client: Any, key: str, text: str, ttl_ms: int) -> None:
    """Store a sign of life, also on a full server. A plain SET costs an idle worker half of a script."""
    try:
        await client.set(key, text, px=ttl_ms)
    except OutOfMemoryError:
        await _BEAT.run(client, [key], [text, ttl_ms])


async def leave(
    client: Any, keys: EngineKeys, worker_id: str, health_key: str, *, closed: bool
) -> None:
    """Delete the keys of a worker that ends; those of the last one and `closed`, arq's health key too."""
    base = keys.base
    of_worker = (base.worker(worker_id), base.workers, keys.listener)
    all_keys = [*of_worker, health_key, base.last_poll(worker_id)]
    await _LEAVE.run(client, all_keys, [worker_id, int(closed)])
