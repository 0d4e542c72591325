"""
The jobs of batches: seal waiting requests into them, run one.

A run may be interrupted anywhere and repeated: the batch's state says where to
continue, and a request keeps its first answer.
"""

from __future__ import annotations

import contextlib
import uuid

from arq.worker import Retry
from redis.exceptions import ResponseError

from cache.logs import get_logger
from worker.errors import InvalidArgument, Permanent, Transient, Undecodable
from worker.llm.answers import Answer
from worker.llm.context import LLMContext
from worker.llm.direct import backoff_s
from worker.llm.grouping import Group, checked_group
from worker.llm.moves import Later, Overtaken
from worker.llm.prepared import AGE_FLUSH
from worker.llm.providers import BatchesUnsupported
from worker.llm.rescuer import rescue_orphans
from worker.llm.run import BatchRun
from worker.llm.scripts import is_wrong_type
from worker.queue.context import JobContext
from worker.queue.encoder import PreparedJob
from worker.queue.priority import Priority

log = get_logger(__name__)


async def flush_llm_batches(ctx: JobContext) -> int:
    """Seal every group's waiting requests; returns the number of new batches."""
    context = LLMContext.of(ctx)
    made = sum([await _flush(context, group) for group in await context.batches.groups()])
    await rescue_orphans(context)
    return made


async def flush_llm_group(
    ctx: JobContext, provider: str, endpoint: str, model: str, *, full_only: bool = False
) -> int:
    """
    Seal one group's waiting requests; returns the number of new batches.

    `full_only` seals full batches only; the rest waits for its maximum age or the cron job. The flush at a
    request's maximum age seals nothing while the oldest one that waits is younger.
    """
    try:
        group = checked_group(provider, endpoint, model)
    except InvalidArgument as exc:
        raise Undecodable(str(exc)) from None
    context = LLMContext.of(ctx)
    job_id = ctx["job_id"]
    by_age = context.prepared.flush(job_id, group) if job_id.startswith(AGE_FLUSH) else None
    return await _flush(context, group, full_only=full_only, by_age=by_age)


async def _flush(
    context: LLMContext,
    group: Group,
    *,
    full_only: bool = False,
    by_age: PreparedJob | None = None,
) -> int:
    made = 0
    while True:
        batch_id = uuid.uuid4().hex[:24]  # with the request's id, a custom id of 61 characters
        job = context.prepared.batch(batch_id)
        items = await context.batches.seal(
            group,
            batch_id,
            rules=context.options.rules[group.provider],
            full_only=full_only,
            job=job,
            job_keys=context.keys.job_keys(job.id, Priority.DEFAULT),
            by_age=by_age,
        )
        if not items:
            return made
        made += 1
        log.info("batch.sealed", batch_id=batch_id, requests=items, model=group.model)


async def run_llm_batch(ctx: JobContext, batch_id: str) -> str:
    """
    Run a batch as far as it can go now; repeated runs end when every request is answered.

    Raises:
        Retry: the provider works on it, or is away; the job runs again later.
        Undecodable: it is not what was sealed; its requests end with that error.
    """
    context = LLMContext.of(ctx)
    try:
        return await _run_batch(context, ctx, batch_id)
    except (Undecodable, ResponseError) as exc:
        if not isinstance(exc, Undecodable) and not is_wrong_type(exc):
            raise
        await _end_unreadable(context, batch_id, exc)
        raise Undecodable(str(exc)) from None


async def _end_unreadable(context: LLMContext, batch_id: str, exc: Exception) -> None:
    store, answer = context.batches, Answer(kind="undecodable", message=str(exc))
    with contextlib.suppress(ResponseError):  # its list of requests may be what is wrong
        async for ids in store.ids(batch_id):
            known = await store.open_items(batch_id, ids)
            await context.requests.answer_many([(id_, answer) for id_ in known])
    # The next run could not read it either, so it gets no other job.
    await store.stop_rescue(batch_id)
    log.error("batch.undecodable", batch_id=batch_id, error=str(exc))


async def _run_batch(context: LLMContext, ctx: JobContext, batch_id: str) -> str:
    batch = await context.batches.take(batch_id)
    if batch is None or batch.state.is_end:
        return "skipped"
    run = BatchRun(context, batch)
    try:
        try:
            return await run.advance()
        except BatchesUnsupported:
            return await run.send_directly()
        except Permanent as exc:
            return await run.fail(exc)
    except Overtaken:
        return "skipped"
    except Later as exc:
        raise Retry(defer=run.until(exc.wait_s)) from None
    except Transient as exc:
        wait_s = run.until(backoff_s(context, ctx, exc))
        await run.note_error(str(exc))
        log.warning("batch.postponed", batch_id=batch_id, error=str(exc), wait_s=round(wait_s, 2))
        raise Retry(defer=wait_s) from None
