"""
Shows LLM batches and waiting requests to the operator, and cancels or retries them.
"""

from __future__ import annotations

from typing import Any

from worker.errors import NotFound
from worker.keys import QueueKeys
from worker.llm.batch_reads import error_at
from worker.llm.batches import Batch, BatchStore, created_at
from worker.llm.grouping import Group, check_endpoint
from worker.llm.prepared import PreparedJobs
from worker.llm.progress import StateProgress, read_progress
from worker.llm.requests import RequestStore
from worker.queue import arguments
from worker.queue.job import reach

_USAGE = ("input", "output", "cached", "reasoning")

# `Batches.list` hides the type's own name inside the class.
_Rows = list[dict[str, Any]]
_Progress = list[StateProgress]


class Batches:
    """
    `queue.llm.batches`.

    Every method raises:
        QueueUnavailable: the server cannot be reached.
    """

    def __init__(
        self,
        keys: QueueKeys,
        batches: BatchStore,
        requests: RequestStore,
        prepared: PreparedJobs,
        *,
        price_factor: float,
    ) -> None:
        self._keys = keys
        self._batches = batches
        self._requests = requests
        self._prepared = prepared
        self._price_factor = price_factor

    # -- reading -----------------------------------------------------------------

    async def get(self, batch_id: str) -> dict[str, Any]:
        """
        A batch: state, counts of its requests, token usage.

        Raises:
            NotFound: no such batch, or it ended more than 7 days ago.
        """
        return await self._shown(await self._batch(batch_id))

    async def list(self, *, limit: int = 50) -> _Rows:
        """The newest batches, newest first, each in the form that `get` returns."""
        return [await self._shown(batch) for batch in await reach(self._batches.listed(limit))]

    async def groups(self) -> _Rows:
        """Groups with waiting requests: their number, bytes and tokens, and the group's usage."""
        return [
            {
                "provider": group.provider,
                "endpoint": group.endpoint,
                "model": group.model,
                "waiting": await reach(self._batches.waiting(group)),
                "usage": await reach(self._batches.usage(group)),
            }
            for group in await reach(self._batches.groups())
        ]

    async def progress(self) -> _Progress:
        """Open batches by state: their number, and how long the slowest has made no progress."""
        return await reach(read_progress(self._batches.client, self._keys))

    # -- changing ------------------------------------------------------------------

    async def cancel(self, batch_id: str) -> bool:
        """
        Cancel a batch; answers that the provider has already produced are kept.

        Returns False when the batch has ended.

        Raises:
            NotFound: no such batch.
        """
        batch = await self._batch(batch_id)
        if batch.state.is_end:
            return False
        await self._cancel_at_provider(batch_id)
        return True

    async def cancel_unwanted(self, batch_id: str) -> bool:
        """Cancel a batch with no unanswered request; returns False when it has one."""
        arguments.require_name("batch_id", batch_id)
        if await reach(self._batches.outstanding(batch_id)):
            return False
        await self._cancel_at_provider(batch_id)
        return True

    async def cancel_group(self, provider: str, endpoint: str, model: str) -> int:
        """
        Cancel a group's waiting requests and batches; returns how many of both in total.

        Raises:
            UnknownProvider, InvalidArgument.
        """
        require_names(provider, endpoint)
        arguments.require_name("model", model, longest=256)
        group = Group(provider, check_endpoint(provider, endpoint), model)
        ended = 0
        while ids := await reach(self._batches.waiting_ids(group)):
            for id_ in ids:
                code, _ = await reach(self._requests.cancel(id_, everybody=True))
                ended += code == 2
                if code == 0:
                    await reach(self._batches.leave_line(group, id_))
        for batch in await reach(self._batches.listed(10_000)):
            if batch.group == group and not batch.state.is_end:
                await self._cancel_at_provider(batch.id)
                ended += 1
        return ended

    async def retry(self, batch_id: str) -> int:
        """
        Return a batch's failed requests to the waiting list; returns how many.

        If the batch has not ended, its job runs now instead.

        Raises:
            NotFound: no such batch.
        """
        batch = await self._batch(batch_id)
        if not batch.state.is_end:
            await self._run_now(batch_id)
            return 0
        retried = 0
        job = self._prepared.flush(f"llm:retry:{batch_id}", batch.group)
        keys = self._keys.job_keys(job.id)
        async for ids in self._batches.ids(batch_id):
            retried += await reach(self._requests.retry(ids, job=job, job_keys=keys))
        return retried

    # -- inside ------------------------------------------------------------------

    async def _batch(self, batch_id: str) -> Batch:
        arguments.require_name("batch_id", batch_id)
        found = await reach(self._batches.read(batch_id))
        if found is None:
            raise NotFound(f"no batch {batch_id!r}, or it ended more than 7 days ago")
        return found

    async def _cancel_at_provider(self, batch_id: str) -> None:
        await reach(self._batches.ask_to_cancel(batch_id))
        await self._run_now(batch_id)

    async def _run_now(self, batch_id: str) -> None:
        job = self._prepared.batch(batch_id)
        await reach(self._batches.hasten(job, self._keys.job_keys(job.id)))

    async def _shown(self, batch: Batch) -> dict[str, Any]:
        outstanding = 0 if batch.state.is_end else await reach(self._batches.outstanding(batch.id))
        usage = {name: batch.number(name) for name in _USAGE}
        return {
            "id": batch.id,
            "state": batch.state.value,
            "provider": batch.group.provider,
            "endpoint": batch.group.endpoint,
            "model": batch.group.model,
            "provider_id": batch.provider_id or None,
            "created_at": created_at(batch).isoformat(),
            "requests": batch.size,
            "succeeded": batch.number("succeeded"),
            "failed": batch.number("failed"),
            "moved": batch.number("moved"),
            "outstanding": outstanding,
            "bytes": batch.number("bytes"),
            "estimated_tokens": batch.number("tokens"),
            "usage": usage,
            # In tokens at full price, so that batches and direct calls can be compared.
            "billed_tokens": round((usage["input"] + usage["output"]) * self._price_factor),
            "ambiguous": batch.number("ambiguous"),
            # A refused batch is split to find the rejected lines.
            "split_from": batch.fields.get("parent"),
            # The provider's own word.
            "provider_status": batch.fields.get("status") or None,
            # While the batch is open: why it does not move.
            "error": batch.fields.get("error") or None,
            "error_at": error_at(batch),
        }


def require_names(provider: Any, endpoint: Any) -> None:
    """Check that both are names; `check_endpoint` checks that they are known."""
    arguments.require_name("provider", provider)
    arguments.require_name("endpoint", endpoint)
