"""
Upkeep of LLM requests and batches: what is open has a live job, whatever became of its last one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from cache.connection.scripts import load
from worker.keys import QueueKeys
from worker.llm.requests import run_many
from worker.queue.encoder import PreparedJob
from worker.queue.priority import Priority

_RESCUE = load(__package__, "rescue_llm", "..queue")
_PAGE = 500
# Looked after in one go, the longest neglected first; the next go sees the others.
_MOST = 10_000


class Orphans:
    """Looks for jobs that were lost, through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    def orphaned_requests(self, *, idle_s: float) -> AsyncIterator[list[str]]:
        """Requests with a job of their own, not looked after for so long, a page at a time."""
        return self._orphaned(self._keys.llm_single, idle_s)

    def orphaned_batches(self, *, idle_s: float) -> AsyncIterator[list[str]]:
        """Batches that have not ended, the same way."""
        return self._orphaned(self._keys.llm_underway, idle_s)

    async def _orphaned(self, index: str, idle_s: float) -> AsyncIterator[list[str]]:
        seconds, micros = await self._client.time()
        until_ms = seconds * 1000 + micros // 1000 - int(idle_s * 1000)
        ids = await self._client.zrange(index, "-inf", until_ms, byscore=True, offset=0, num=_MOST)
        for at in range(0, len(ids), _PAGE):
            yield [id_.decode() for id_ in ids[at : at + _PAGE]]

    async def rescue_requests(
        self, jobs: Sequence[tuple[str, PreparedJob]], *, most: int
    ) -> tuple[list[str], list[str]]:
        """
        Give each request that has lost its job another, `most` times at most.

        Returns the ids of the revived, and of those that lost too many.
        """
        keys = self._keys
        rows = [(keys.llm_request(id_), keys.llm_single, id_, job) for id_, job in jobs]
        codes = await self._rescue(rows, Priority.HIGH, most)
        found = list(zip((id_ for id_, _ in jobs), codes, strict=True))
        return [id_ for id_, code in found if code == 1], [id_ for id_, code in found if code < 0]

    async def rescue_batches(self, jobs: Sequence[tuple[str, PreparedJob]]) -> list[str]:
        """Give each batch that has lost its job another; returns the ids of those."""
        keys = self._keys
        rows = [(keys.llm_batch(id_), keys.llm_underway, id_, job) for id_, job in jobs]
        codes = await self._rescue(rows, Priority.DEFAULT, 0)
        return [id_ for (id_, _), code in zip(jobs, codes, strict=True) if code == 1]

    async def _rescue(
        self, rows: Sequence[tuple[str, str, str, PreparedJob]], priority: Priority, most: int
    ) -> list[int]:
        keys = self._keys
        calls = [
            (
                [
                    owner,
                    index,
                    keys.queue(priority),
                    keys.job(job.id),
                    keys.result(job.id),
                    keys.wake,
                    keys.dead,
                    keys.dead_job(job.id),
                    keys.retry(job.id),
                ],
                [id_, job.id, job.body, most],
            )
            for owner, index, id_, job in rows
        ]
        return await run_many(self._client, _RESCUE, calls)
