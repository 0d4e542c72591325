"""
Stores LLM batches in Redis: seals waiting requests into them, moves them by compare-and-set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cache.connection.scripts import load
from worker.keys import LLM_BATCH_TTL_S, LLM_MAX_BATCHES
from worker.llm.batch_reads import PAGE, Batch, BatchReads, batch_of, created_at
from worker.llm.grouping import Group
from worker.llm.options import FlushRules
from worker.llm.scripts import run_many
from worker.llm.states import BatchState
from worker.llm.stored_groups import encode_group
from worker.queue.encoder import PreparedJob

__all__ = ["PAGE", "Batch", "BatchStore", "created_at"]

_SEAL = load(__package__, "seal_batch", "..queue")
_TAKE = load(__package__, "take_batch", "..queue")
_MOVE = load(__package__, "move_batch", "..queue")
_SPLIT = load(__package__, "split_batch", "..queue")
_DETACH = load(__package__, "detach_llm", "..queue")
_HASTEN = load(__package__, "hasten_batch", "..queue")
# Requests that one call of seal_batch.lua moves: it occupies the server for about 2 ms.
_SEAL_CHUNK = 250
# If a flush dies half way, the batch's own job seals it after this time.
_UNSEALED_MS = 60_000


class BatchStore(BatchReads):
    """Seals, moves and reads batches through one client."""

    async def seal(
        self,
        group: Group,
        batch_id: str,
        *,
        rules: FlushRules,
        full_only: bool,
        job: PreparedJob,
        job_keys: list[str],
        by_age: PreparedJob | None = None,
    ) -> int:
        """
        Move waiting requests into a new batch until it is full or none is left; returns how many.

        `full_only`: do nothing unless they fill a batch. `by_age`: the flush by age that calls; it
        does nothing while the oldest request has not waited for the rules' maximum age, which then
        gets such a flush of its own.
        """
        keys = self.keys
        names = [*self._keys(batch_id), keys.llm_batches, keys.llm_underway, *job_keys]
        args = [
            keys.llm,
            group.id,
            encode_group(group),
            batch_id,
            rules.max_requests,
            rules.max_bytes,
            rules.max_tokens,
            int(full_only),
            job.id,
            job.body,
            _SEAL_CHUNK,
            _UNSEALED_MS,
            LLM_MAX_BATCHES,
            LLM_BATCH_TTL_S * 1000,
            by_age.id if by_age else "",
            by_age.body if by_age else "",
            rules.max_age_ms,
        ]
        while True:
            items, sealed = await _SEAL.run(self.client, names, args)
            if sealed:
                return int(items)

    async def stop_rescue(self, batch_id: str) -> None:
        """Give the batch no new job when it has none."""
        await self.client.zrem(self.keys.llm_underway, batch_id)

    async def take(self, batch_id: str) -> Batch | None:
        """Begin a run: no earlier run's move counts any more. None when there is no such batch."""
        flat = await _TAKE.run(self.client, [self.keys.llm_batch(batch_id)])
        return batch_of(batch_id, dict(zip(flat[::2], flat[1::2], strict=True))) if flat else None

    async def move(
        self, batch: Batch, to: BatchState, *, then: PreparedJob | None = None, **fields: str | int
    ) -> int:
        """
        Change the state; returns 1 done, 0 another run owns the batch, -1 open requests forbid the end.

        The job `then` is enqueued in the same step when the batch ends.
        """
        flat = [part for pair in fields.items() for part in pair]
        ttl = LLM_BATCH_TTL_S * 1000 if to.is_end else ""
        job = then or _NO_JOB
        names = [*self._keys(batch.id), self.keys.llm_underway]
        names += self.keys.job_keys(job.id)
        args = [batch.state.value, batch.epoch, to.value, ttl, batch.id, job.id, job.body, *flat]
        return int(await _MOVE.run(self.client, names, args))

    async def split(
        self, old: Batch, new_id: str, ids: Sequence[str], *, seal: bool, job: PreparedJob
    ) -> bool:
        """Move open requests of `old` into a new batch; returns False when that one is sealed."""
        keys = self.keys
        family = old.fields.get("family") or old.id
        names = [*self._keys(new_id), keys.llm_batches, keys.llm_underway]
        names += keys.job_keys(job.id)
        names += [keys.llm_batch(old.id), keys.llm_open(old.id), keys.llm_batch(family)]
        args = [
            keys.llm,
            old.id,
            new_id,
            family,
            job.id,
            job.body,
            _UNSEALED_MS,
            LLM_MAX_BATCHES,
            LLM_BATCH_TTL_S * 1000,
            int(seal),
            *ids,
        ]
        _, taken = await _SPLIT.run(self.client, names, args)
        return bool(taken)

    async def detach(
        self,
        batch_id: str,
        items: Sequence[tuple[str, PreparedJob, list[str]]],
        *,
        mode: Literal["wait", "single", "urgent"],
        delay_ms: int = 0,
    ) -> int:
        """Take requests out of a batch, each with its job: to wait again, or for a direct call."""
        calls = [
            (
                [self.keys.llm_request(id_), *job_keys],
                [self.keys.llm, id_, batch_id, mode, job.id, job.body, delay_ms],
            )
            for id_, job, job_keys in items
        ]
        return sum(await run_many(self.client, _DETACH, calls))

    async def hasten(self, job: PreparedJob, job_keys: list[str]) -> bool:
        """Make a batch's job due now; returns False when it is running."""
        names = [*job_keys, self.keys.in_progress(job.id)]
        return bool(await _HASTEN.run(self.client, names, [job.id, job.body]))

    async def leave_line(self, group: Group, request_id: str) -> None:
        """Remove an ended request from the list of those that wait."""
        await self.client.lrem(self.keys.llm_pending(group.id), 1, request_id)

    async def drop_lost(self, batch_id: str) -> int:
        """Count as open only what is there: a request that somebody deleted is waited for in vain."""
        lost = await self.lost(batch_id)
        for at in range(0, len(lost), PAGE):
            await self.client.srem(self.keys.llm_open(batch_id), *lost[at : at + PAGE])
        return len(lost)

    async def ask_to_cancel(self, batch_id: str) -> None:
        await self.client.hset(self.keys.llm_batch(batch_id), "cancel", 1)

    async def note(self, batch_id: str, **fields: str | int) -> None:
        """Store fields without a transition."""
        await self.client.hset(self.keys.llm_batch(batch_id), mapping=fields)

    def _keys(self, batch_id: str) -> list[str]:
        keys = self.keys
        return [keys.llm_batch(batch_id), keys.llm_items(batch_id), keys.llm_open(batch_id)]


_NO_JOB = PreparedJob("", b"")
