"""
Upkeep of the LLM half: no request and no batch stays open without a job that carries it on.

A job can be lost: its workers died under it too often (a dead letter), somebody purged it, its
body cannot be read. A batch gets another job as often as need be; a request that goes by itself
a few times, for it may be what kills the workers, and then ends with the error `job_lost`.
"""

from __future__ import annotations

import structlog

from worker.llm.answers import Answer
from worker.llm.context import LLMContext
from worker.queue.context import JobContext

log = structlog.get_logger(__name__)

RESCUE_LLM = "rescue_llm"
# A job that has just been lost is seen within twice this.
RESCUE_LLM_CRON = "*/15 * * * * *"
_IDLE_S = 15.0
_MOST_LOST = 3


async def rescue_llm(ctx: JobContext) -> int:
    """Give what has lost its job another; returns how many jobs that made."""
    return await look_after(LLMContext.of(ctx), idle_s=_IDLE_S)


async def look_after(context: LLMContext, *, idle_s: float = 0.0) -> int:
    """The same for what nobody has looked after for `idle_s` seconds."""
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
    if rescued:
        log.warning("llm.jobs_rescued", jobs=rescued)
    return rescued


async def _give_up(context: LLMContext, request_id: str) -> None:
    letter = await context.dead.get(context.prepared.single(request_id).id)
    reason = "it vanished" if letter is None else letter.reason
    message = f"its job was lost {_MOST_LOST + 1} times, the last time: {reason}"
    await context.requests.answer(request_id, Answer(kind="job_lost", message=message))
    log.error("llm.given_up", request_id=request_id, reason=reason)
