"""Reports parked jobs in one line per function and minute, however many jobs and workers there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cache.connection.pool import OUTAGE
from cache.logs import get_logger
from worker.keys import QueueKeys

log = get_logger(__name__)

_QUIET_S = 60.0
# Functions that this worker remembers. Beyond, their lines wait for the next minute.
_MOST_NAMES = 100


class ParkedReport:
    """
    Logs `job.parked`. `spawn` runs a coroutine in the background.

    A parked job is claimed again every few seconds, so a line for each claim would be most
    of a log. The workers of a queue share the minute in a key of the server.
    """

    def __init__(self, client: Any, keys: QueueKeys, *, spawn: Callable[[str, Any], None]) -> None:
        self._client = client
        self._keys = keys
        self._spawn = spawn
        self._told: dict[str, float] = {}  # function -> loop time, in that order

    def note(self, job_id: str, function: str) -> None:
        """Report that a job was parked, unless its function was reported within a minute."""
        now = asyncio.get_running_loop().time()
        for name, told_at in list(self._told.items()):
            if told_at > now - _QUIET_S:
                break
            del self._told[name]
        if function not in self._told and len(self._told) < _MOST_NAMES:
            self._told[function] = now
            self._spawn("parked report", self._tell(job_id, function))

    async def _tell(self, job_id: str, function: str) -> None:
        key = self._keys.parked_told(function)
        try:
            is_first = await self._client.set(key, job_id, nx=True, px=round(_QUIET_S * 1000))
        except OUTAGE:
            is_first = True
        if is_first:
            log.warning("job.parked", job_id=job_id, task=function)
