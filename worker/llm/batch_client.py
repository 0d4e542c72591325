"""
The operator's side of LLM batches: what waits and what is under way; cancel and retry it.
"""

from __future__ import annotations

from typing import Any

from worker.errors import NotFound
from worker.keys import QueueKeys
from worker.llm.batches import Batch, BatchStore, created_at
from worker.llm.grouping import Group, check_endpoint
from worker.llm.orphans import Orphans
from worker.llm.requests import PreparedJob, RequestStore, Retention
from worker.options import QueueOptions
from worker.queue import arguments
from worker.queue.client import Limits, Producer
from worker.queue.job import reach
from worker.queue.priority import Priority

FLUSH_LLM_GROUP = "flush_llm_group"
RUN_LLM_BATCH = "run_llm_batch"
RUN_LLM_REQUEST = "run_llm_request"
DELETE_LLM_FILES = "delete_llm_files"
SEND_LLM_CALLBACK = "send_llm_callback"

_USAGE = ("input", "output", "cached", "reasoning")


class BatchClient(Producer):
    """Looks after batches through one Redis client. `LLMClient` hands requests in as well."""

    def __init__(self, client: Any, keys: QueueKeys, options: QueueOptions) -> None:
        limits = Limits(options.max_job_bytes, options.max_length, options.max_memory_share)
        super().__init__(client, keys, limits)
        self.options = options
        retention = Retention(
            options.llm_result_ttl_s, options.llm_read_result_ttl_s, options.llm_cache_ttl_s
        )
        self.batches = BatchStore(client, self.keys)
        self.requests = RequestStore(client, self.keys, retention)
        self.orphans = Orphans(client, self.keys)

    async def cancel_llm_request(self, request_id: str, *, everybody: bool = False) -> bool:
        """
        Give up a request: it ends with the error `canceled` unless others wait for it too.

        Every caller has an id of its own and gives up its own share, once.
        `everybody`, for operators, ends it for all who share it. Its batch is
        cancelled at the provider when nobody waits for any of it. False when it is
        answered already, or unknown.
        """
        arguments.require_name("request_id", request_id)
        code, batch_id = await reach(self.requests.cancel(request_id, everybody=everybody))
        if batch_id and not await reach(self.batches.outstanding(batch_id)):
            await self._cancel_at_provider(batch_id)
        return code > 0

    async def cancel_llm_batch(self, batch_id: str) -> bool:
        """
        Give up what a batch has not answered; what the provider has done already is kept.

        False when it has ended.

        Raises:
            NotFound: no such batch.
        """
        batch = await self._batch(batch_id)
        if batch.state.is_end:
            return False
        await self._cancel_at_provider(batch_id)
        return True

    async def cancel_llm_group(self, provider: str, endpoint: str, model: str) -> int:
        """
        Give up a group: its waiting requests and its batches; returns how many of both.

        Raises:
            UnknownProvider, InvalidArgument.
        """
        require_names(provider, endpoint)
        arguments.require_name("model", model, longest=256)
        group = Group(provider, check_endpoint(provider, endpoint), model)
        ended = 0
        while ids := await reach(self.batches.waiting_ids(group)):
            for id_ in ids:
                code, _ = await reach(self.requests.cancel(id_, everybody=True))
                ended += code == 2
        for batch in await reach(self.batches.listed(10_000)):
            if batch.group == group and not batch.state.is_end:
                await self._cancel_at_provider(batch.id)
                ended += 1
        return ended

    async def retry_llm_batch(self, batch_id: str) -> int:
        """
        Let a batch's requests that ended with an error wait again; returns how many.

        A batch that has not ended is looked at now.

        Raises:
            NotFound: no such batch.
        """
        batch = await self._batch(batch_id)
        if not batch.state.is_end:
            await self._run_now(batch_id)
            return 0
        group, retried = batch.group, 0
        row = [group.provider, group.endpoint, group.model]
        job = self.prepared(f"llm:retry:{batch_id}", FLUSH_LLM_GROUP, *row)
        keys = self.jobs.job_keys(job.id, Priority.DEFAULT)
        async for ids in self.batches.ids(batch_id):
            retried += await reach(self.requests.retry(ids, job=job, job_keys=keys))
        return retried

    async def llm_batch(self, batch_id: str) -> dict[str, Any]:
        """
        A batch: state, counts of its requests, usage in tokens.

        Raises:
            NotFound: no such batch, or it ended over 7 days ago.
        """
        return await self._shown(await self._batch(batch_id))

    async def llm_batches(self, *, limit: int = 50) -> list[dict[str, Any]]:
        """The newest batches, newest first, each as `llm_batch` shows it."""
        return [await self._shown(batch) for batch in await reach(self.batches.listed(limit))]

    async def llm_groups(self) -> list[dict[str, Any]]:
        """The groups in which requests wait: how many, their bytes and tokens, usage so far."""
        return [
            {
                "provider": group.provider,
                "endpoint": group.endpoint,
                "model": group.model,
                "waiting": await reach(self.batches.waiting(group)),
                "usage": await reach(self.batches.usage(group)),
            }
            for group in await reach(self.batches.groups())
        ]

    # -- inside ----------------------------------------------------------------

    def batch_job(self, batch_id: str) -> PreparedJob:
        """The job that carries a batch on."""
        return self.prepared(f"llm:batch:{batch_id}", RUN_LLM_BATCH, batch_id)

    def single_job(self, request_id: str) -> PreparedJob:
        """The job that answers one request by itself."""
        return self.prepared(f"llm:single:{request_id}", RUN_LLM_REQUEST, request_id)

    def files_job(self, batch_id: str) -> PreparedJob:
        """The job that deletes an ended batch's files at the provider."""
        return self.prepared(f"llm:files:{batch_id}", DELETE_LLM_FILES, batch_id)

    def prepared(self, job_id: str, name: str, *args: Any, **kwargs: Any) -> PreparedJob:
        """A job for a script to store."""
        return PreparedJob(job_id, self._body(name, *args, **kwargs))

    async def _batch(self, batch_id: str) -> Batch:
        arguments.require_name("batch_id", batch_id)
        found = await reach(self.batches.read(batch_id))
        if found is None:
            raise NotFound(f"no batch {batch_id!r}, or it ended over 7 days ago")
        return found

    async def _cancel_at_provider(self, batch_id: str) -> None:
        await reach(self.batches.ask_to_cancel(batch_id))
        await self._run_now(batch_id)

    async def _run_now(self, batch_id: str) -> None:
        job = self.batch_job(batch_id)
        keys = self.jobs.job_keys(job.id, Priority.DEFAULT)
        await reach(self.batches.hasten(job, keys))

    async def _shown(self, batch: Batch) -> dict[str, Any]:
        outstanding = 0 if batch.state.is_end else await reach(self.batches.outstanding(batch.id))
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
            # What the same tokens would be by themselves, in whole-price tokens.
            "billed_tokens": round(
                (usage["input"] + usage["output"]) * self.options.llm_batch_price_factor
            ),
            "ambiguous": batch.number("ambiguous"),
            # A refused batch is looked through by parts.
            "split_from": batch.fields.get("parent"),
            "error": batch.fields.get("error") or None,
        }


def require_names(provider: Any, endpoint: Any) -> None:
    """Names before they are looked up; whether they are known is `check_endpoint`'s to say."""
    arguments.require_name("provider", provider)
    arguments.require_name("endpoint", endpoint)
