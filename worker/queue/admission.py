"""Whether the queue's server has room: a watermark on its memory, looked at once a second."""

from __future__ import annotations

import time
from typing import Any

from worker.errors import QueueMemoryFull
from worker.queue.job import reach

_LOOK_S = 1.0


class MemoryGuard:
    """
    Refuses an enqueue over `share` of the server's maxmemory; 0 never refuses.

    Below that mark the workers still have room to end what is there.
    """

    def __init__(self, client: Any, *, share: float) -> None:
        self._client = client
        self._share = share
        self._looked = float("-inf")
        self._used = self._limit = 0

    async def admit(self) -> None:
        """
        Raises:
            QueueMemoryFull: the watermark is passed; nothing was stored.
            QueueUnavailable: the server cannot be reached.
        """
        if not self._share:
            return
        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            memory = await reach(self._client.info("memory"))
            self._used, self._limit = memory["used_memory"], memory["maxmemory"]
            self._looked = now
        if self._limit and self._used > self._share * self._limit:
            raise QueueMemoryFull(
                f"the queue's server uses {self._used} of {self._limit} bytes, over the watermark "
                f"of {self._share:.0%} (LETTA_QUEUE_MAX_MEMORY_SHARE)"
            )
