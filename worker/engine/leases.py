"""
Renews the leases of running jobs, in a thread, so that a blocked event loop keeps its jobs.

Renewal stops after a job's timeout, and for a job that does not start because
another one blocks the loop: both go to another worker. A lease that another
worker has taken is reported to the loop, which cancels the job.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from cache.connection.pool import OUTAGE, close_client
from cache.connection.scripts import load
from cache.connection.siblings import sibling
from cache.logs import get_logger
from worker.engine.records import Claim
from worker.keys import EngineKeys

log = get_logger(__name__)

_RENEW = load(__package__, "renew", "..queue")
_MOST_PAIRS = 2000
_UNSTARTED_LEASES = 2
_JOIN_S = 5.0
# Time until a thread's loop that died starts again.
_PAUSE_S = 1.0


async def renew(
    client: Any, keys: EngineKeys, claims: Sequence[Claim], *, lease_ms: int
) -> list[Claim]:
    """Renew the leases of these claims (at most 2000); return those whose lease is lost."""
    by_id = {claim.id: claim for claim in claims}
    args: list[Any] = [keys.base.prefix, lease_ms]
    for claim in by_id.values():
        args += (claim.id, claim.token)
    return [by_id[id_] for id_ in await _RENEW.run(client, [*keys.queues, keys.running], args)]


class LeaseKeeper:
    """Renews the leases of `claims`, which the event loop's thread changes at any time."""

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
        self._keys = keys
        self._lease_ms = int(lease_s * 1000)
        self._interval_s = lease_s / 3
        self._unstarted_s = _UNSTARTED_LEASES * lease_s
        self._on_lost = on_lost
        self._client = client
        self._worker_loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join, _JOIN_S)

    def _main(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._renew_until_stopped())
            except BaseException as exc:
                log.exception("helper.died", helper="leases", error=type(exc).__name__)
                self._stop.wait(_PAUSE_S)

    async def _renew_until_stopped(self) -> None:
        loop = asyncio.get_running_loop()
        # A reply that takes longer than the interval comes too late to be useful.
        client = sibling(
            self._client, name="letta-redis-leases", socket_timeout_s=max(0.5, self._interval_s)
        )
        try:
            while not await loop.run_in_executor(None, self._stop.wait, self._interval_s):
                try:
                    await self._renew(client)
                except OUTAGE:
                    # The poll logs the outage. A lease outlives three missed renewals.
                    continue
                except Exception:
                    log.exception("lease.renewal_failed")
        finally:
            await close_client(client)

    async def _renew(self, client: Any) -> None:
        now = time.monotonic()
        # `list` copies in one C call, so the copy is consistent while the loop's thread writes.
        claims = [c for c in list(self._claims.values()) if self._is_kept(c, now)]
        for at in range(0, len(claims), _MOST_PAIRS):
            lost = await renew(
                client, self._keys, claims[at : at + _MOST_PAIRS], lease_ms=self._lease_ms
            )
            if lost:
                self._worker_loop.call_soon_threadsafe(self._on_lost, lost)

    def _is_kept(self, claim: Claim, now: float) -> bool:
        if claim.stop:
            return False
        # A claim that has not started by then waits behind a job that blocks the loop.
        return claim.deadline > now if claim.started else claim.held_at + self._unstarted_s > now
