"""
Finds open LLM requests and batches whose job was lost, and gives them a new job.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from cache.connection.scripts import load
from worker.keys import QueueKeys
from worker.llm.scripts import run_many
from worker.queue.encoder import PreparedJob
from worker.queue.priority import Priority

_RESCUE = load(__package__, "rescue_llm", "..queue")
_PAGE = 500
# Checked in one run, least recently checked first; the next run continues.
_MOST = 10_000


class Orphans:
    """Replaces lost jobs through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    def orphaned_requests(self, *, idle_s: float) -> AsyncIterator[list[str]]:
        """Requests with their own job, not checked for `idle_s` seconds, page by page."""
        return self._orphaned(self._keys.llm_single, idle_s)

    def orphaned_batches(self, *, idle_s: float) -> AsyncIterator[list[str]]:
        """Batches that have not ended, not checked for `idle_s` seconds, page by page."""
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
        Enqueue a new job for each request that lost its job, at most `most` times each.

        Returns the ids of the rescued requests, and of those that lost too many jobs.
        """
        keys = self._keys
        rows = [(keys.llm_request(id_), keys.llm_single, id_, job) for id_, job in jobs]
        codes = await self._rescue(rows, Priority.HIGH, most)
        found = list(zip((id_ for id_, _ in jobs), codes, strict=True))
        return [id_ for id_, code in found if code == 1], [id_ for id_, code in found if code < 0]

    async def rescue_batches(self, jobs: Sequence[tuple[str, PreparedJob]]) -> list[str]:
        """Enqueue a new job for each batch that lost its job; returns the ids of those batches."""
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
