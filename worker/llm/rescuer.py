"""
Gives open LLM requests and batches a new job when theirs was lost.

A job is lost when its workers died too often (a dead letter), somebody purged it, or its body
cannot be read. A batch gets a new job without limit. A request with its own job gets a few,
because it may be what kills the workers; then it ends with the error `job_lost`.
"""

from __future__ import annotations

from cache.logs import get_logger
from worker.llm.answers import Answer
from worker.llm.context import LLMContext
from worker.queue.context import JobContext

log = get_logger(__name__)

RESCUE_LLM = "rescue_llm"
# A lost job is found within two of these intervals.
RESCUE_LLM_CRON = "*/15 * * * * *"
_IDLE_S = 15.0
_MOST_LOST = 3


async def rescue_llm(ctx: JobContext) -> int:
    """Enqueue new jobs for orphaned requests and batches; returns how many."""
    return await rescue_orphans(LLMContext.of(ctx), idle_s=_IDLE_S)


async def rescue_orphans(context: LLMContext, *, idle_s: float = 0.0) -> int:
    """Rescue requests and batches not checked for `idle_s` seconds; returns how many."""
    orphans, prepared = context.orphans, context.prepared
    rescued = 0
    async for ids in orphans.orphaned_batches(idle_s=idle_s):
        batches = await orphans.rescue_batches([(id_, prepared.batch(id_)) for id_ in ids])
        rescued += len(batches)
    async for ids in orphans.orphaned_requests(idle_s=idle_s):
        jobs = [(id_, prepared.single(id_)) for id_ in ids]
        again, lost = await orphans.rescue_requests(jobs, most=_MOST_LOST)
        rescued += len(again)
        for id_ in lost:
            await _give_up(context, id_)
    await context.requests.send_callbacks()
    if rescued:
        log.warning("llm.jobs_rescued", jobs=rescued)
    return rescued


async def _give_up(context: LLMContext, request_id: str) -> None:
    letter = await context.dead.get(context.prepared.single(request_id).id)
    reason = "the job disappeared" if letter is None else letter.reason
    message = f"the request's job was lost {_MOST_LOST + 1} times; the last reason: {reason}"
    await context.requests.answer(request_id, Answer(kind="job_lost", message=message))
    log.error("llm.given_up", request_id=request_id, reason=reason)
