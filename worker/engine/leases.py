"""
Leases: a thread of its own renews them, so that a blocked event loop keeps its jobs.

Not for ever: a job past its timeout is no longer renewed, and falls to another
worker; nor is one that does not begin, because a job before it blocks the loop. A lease that another worker took is reported to the loop, which cancels
the job.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from cache.connection.pool import OUTAGE, close_client, sibling
from cache.connection.scripts import load
from worker.engine.records import Claim, EngineKeys

log = structlog.get_logger(__name__)

_RENEW = load(__package__, "renew", "..queue")
_MOST_PAIRS = 2000
_UNSTARTED_LEASES = 2
_JOIN_S = 5.0


class LeaseKeeper:
    """Renews the leases of `claims`, which the loop's thread changes as it likes."""

    def __init__(
        self,
        client: Any,
        keys: EngineKeys,
        claims: dict[bytes, Claim],
        *,
        lease_s: float,
        on_lost: Callable[[list[Claim]], None],
    ) -> None:
        self._claims = claims
        self._keys = [*keys.queues, keys.running]
        self._prefix = keys.base.prefix
        self._lease_ms = int(lease_s * 1000)
        self._interval_s = lease_s / 3
        self._unstarted_s = _UNSTARTED_LEASES * lease_s
        self._on_lost = on_lost
        self._client = client
        self._worker_loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="leases", daemon=True)
        self.renewed_at = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join, _JOIN_S)

    def _main(self) -> None:
        asyncio.run(self._renew_until_stopped())

    async def _renew_until_stopped(self) -> None:
        loop = asyncio.get_running_loop()
        # A reply that takes longer than the interval is of no use.
        client = sibling(
            self._client, name="letta-redis-leases", socket_timeout_s=max(0.5, self._interval_s)
        )
        try:
            while not await loop.run_in_executor(None, self._stop.wait, self._interval_s):
                try:
                    await self._renew(client)
                except OUTAGE:
                    # Told by the pump. Leases outlive three of these.
                    continue
                except Exception:
                    log.exception("lease.renewal_failed")
        finally:
            await close_client(client)

    async def _renew(self, client: Any) -> None:
        now = time.monotonic()
        # One C call: a consistent copy, whatever the loop's thread does.
        claims = [c for c in list(self._claims.values()) if self._is_kept(c, now)]
        for at in range(0, len(claims), _MOST_PAIRS):
            batch = {claim.id: claim for claim in claims[at : at + _MOST_PAIRS]}
            args: list[Any] = [self._prefix, self._lease_ms]
            for claim in batch.values():
                args += (claim.id, claim.token)
            lost = [batch[id_] for id_ in await _RENEW.run(client, self._keys, args)]
            if lost:
                self._worker_loop.call_soon_threadsafe(self._on_lost, lost)
        self.renewed_at = now

    def _is_kept(self, claim: Claim, now: float) -> bool:
        if claim.stop:
            return False
        # One that has not begun by now stands behind a job that blocks the loop.
        return claim.deadline > now if claim.started else claim.held_at + self._unstarted_s > now
