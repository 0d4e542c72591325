"""Refuses jobs when the queue's server uses too much memory."""

from __future__ import annotations

import time
from typing import Any

from worker.errors import QueueMemoryFull
from worker.queue.job import reach

# How long one reading of the server's memory is used.
_READ_EVERY_S = 1.0


class MemoryGuard:
    """
    Refuses an enqueue when the server uses more than `share` of its maxmemory.

    The rest is left for the workers, which need memory to finish queued jobs. 0
    switches the guard off.
    """

    def __init__(self, client: Any, *, share: float) -> None:
        self._client = client
        self._share = share
        self._read_at = float("-inf")
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
        if now - self._read_at > _READ_EVERY_S:
            memory = await reach(self._client.info("memory"))
            self._used, self._limit = memory["used_memory"], memory["maxmemory"]
            self._read_at = now
        if self._limit and self._used > self._share * self._limit:
            raise QueueMemoryFull(
                f"the queue's server uses {self._used} of {self._limit} bytes, over the watermark "
                f"of {self._share:.0%}; retry later, raise its maxmemory, or raise "
                "LETTA_QUEUE_MAX_MEMORY_SHARE"
            )
