"""Refuses jobs when the queue's server uses too much memory, or would store only parts of them."""

from __future__ import annotations

import time
from typing import Any

from worker.errors import QueueMemoryFull
from worker.queue.job import reach
from worker.queue.rights import require_rights

# How long one reading of the server's memory is used.
_READ_EVERY_S = 1.0


class MemoryGuard:
    """
    Refuses an enqueue when the server uses more than `share` of its maxmemory.

    The rest is left for the workers, which need memory to finish queued jobs. 0
    switches the guard off. The first enqueue also asks for this user's rights.
    """

    def __init__(self, client: Any, queue: str, *, share: float) -> None:
        self._client = client
        self._queue = queue
        self._may_enqueue = False
        self._share = share
        self._read_at = float("-inf")
        self._used = self._limit = 0

    async def admit(self) -> None:
        """
        Raises:
            QueueMemoryFull: the watermark is passed; nothing was stored.
            QueueUnavailable: the server cannot be reached, or denies a command.
        """
        if not self._may_enqueue:
            await reach(require_rights(self._client, self._queue))
            self._may_enqueue = True
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
