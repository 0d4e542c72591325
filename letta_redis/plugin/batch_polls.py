"""
Polls Letta's Anthropic batches, and completes those that have ended.

The results are stored before anything else changes. A batch stays `running` in Letta's
table until its agents have gone on, so that after a crash or an error another server,
or the next poll, repeats the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from letta.jobs.helpers import map_anthropic_individual_batch_item_status_to_job_status
from letta.jobs.types import BatchPollingResult, ItemUpdateInfo
from letta.orm.llm_batch_job import LLMBatchJob
from letta.schemas.enums import JobStatus, ProviderType
from letta.schemas.job import JobUpdate
from letta.server.db import db_registry
from letta.settings import settings
from sqlalchemy import select

from cache.logs import get_logger
from letta_redis.plugin.batch_agents import BatchAgents

log = get_logger("letta_redis")

# A batch whose agents could not go on in so many polls has failed.
MOST_RESUMES = 5
_OVER = {JobStatus.completed, JobStatus.failed, JobStatus.cancelled, JobStatus.expired}


class HeldLease(Protocol):
    """A lease: one process at a time completes a batch."""

    @property
    def held(self) -> bool: ...


class Polls:
    """The polls of one server. `server` has Letta's managers and its client of Anthropic."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._failures: Counter[str] = Counter()

    async def poll(self, lease: HeldLease) -> None:
        """Look once at each batch that has not ended. The next poll repeats one that raised."""
        for batch in await _unfinished():
            if not lease.held:
                return
            try:
                await self._look_at(batch, lease)
            except Exception as exc:  # noqa: BLE001  (the next poll looks again)
                log.warning("letta.batch_unread", batch=batch.id, error=repr(exc))

    async def _look_at(self, batch: Any, lease: HeldLease) -> None:
        batches = self._server.anthropic_async_client.beta.messages.batches
        answer = await batches.retrieve(batch.create_batch_response.id)
        if answer.processing_status != "ended":
            await self._note(batch, batch.status, answer)
            return
        results = [result async for result in await batches.results(answer.id)]
        items = await self._keep(batch, {result.custom_id: result for result in results})
        status = batch.status
        if status == JobStatus.running:
            if not lease.held:
                return
            status = await self._go_on(batch, items)
        if status != JobStatus.running:
            await self._note(batch, status, answer)
            log.info(
                "letta.batch_ended", batch=batch.id, status=str(status.value), items=len(items)
            )

    async def _keep(self, batch: Any, results: Mapping[str, Any]) -> list[ItemUpdateInfo]:
        """Store the result of each agent. An agent without a result has failed."""
        manager = self._server.batch_manager
        items = []
        for item in await manager.list_llm_batch_items_async(batch.id):
            result, status = results.get(item.agent_id), JobStatus.failed
            if result is not None:
                status = map_anthropic_individual_batch_item_status_to_job_status(result)
            items.append(ItemUpdateInfo(batch.id, item.agent_id, status, result))
        await manager.bulk_update_batch_llm_items_results_by_agent_async(items, strict=False)
        return items

    async def _note(self, batch: Any, status: JobStatus, answer: Any) -> None:
        update = BatchPollingResult(batch.id, status, answer)
        await self._server.batch_manager.bulk_update_llm_batch_statuses_async([update])

    async def _go_on(self, batch: Any, items: Iterable[ItemUpdateInfo]) -> JobStatus:
        """Let the agents go on. Return the state of the batch."""
        server = self._server
        actor = await server.user_manager.get_actor_by_id_async(batch.created_by_id)
        job_id = batch.letta_batch_job_id
        job = await server.job_manager.get_job_by_id_async(job_id, actor)
        siblings = await server.batch_manager.list_llm_batch_jobs_async(job_id, actor)
        later = [other for other in siblings if other.created_at > batch.created_at]
        if later or job.status in _OVER:  # done before a crash
            return JobStatus.completed
        if len(siblings) == 1 and all(item.request_status != JobStatus.completed for item in items):
            await self._fail(job_id, actor)
            return JobStatus.failed
        try:
            await BatchAgents.of(server, actor).resume_step_after_request(job_id, batch.id)
        except Exception as exc:
            self._failures[batch.id] += 1
            log.exception("letta.batch_not_resumed", batch=batch.id)
            if self._failures[batch.id] < MOST_RESUMES:
                return JobStatus.running
            await self._fail(job_id, actor, repr(exc))
            return JobStatus.failed
        self._failures.pop(batch.id, None)
        return JobStatus.completed

    async def _fail(self, job_id: str, actor: Any, error: str = "no request succeeded") -> None:
        update = JobUpdate(status=JobStatus.failed, metadata={"error": error})
        await self._server.job_manager.update_job_by_id_async(job_id, update, actor)


async def _unfinished() -> list[Any]:
    """
    Batches that Letta calls running, and canceled ones without their results.

    Letta marks a batch canceled when it requests the cancellation, and never polls it again.
    """
    weeks = max(settings.batch_job_polling_lookback_weeks, 1)
    query = (
        select(LLMBatchJob)
        .where(LLMBatchJob.status.in_([JobStatus.running, JobStatus.cancelled]))
        .where(LLMBatchJob.llm_provider == ProviderType.anthropic)
        .where(LLMBatchJob.created_at >= datetime.now(UTC) - timedelta(weeks=weeks))
        .order_by(LLMBatchJob.created_at)
    )
    async with db_registry.async_session() as session:
        found = [row.to_pydantic() for row in (await session.execute(query)).scalars()]
    return [batch for batch in found if not _has_results(batch)]


def _has_results(batch: Any) -> bool:
    last = batch.latest_polling_response
    return (
        batch.status == JobStatus.cancelled
        and last is not None
        and bool(last.processing_status == "ended")
    )
