"""
The LLM jobs: seal waiting requests into batches, run a batch, make one direct call.

A run may be interrupted anywhere and repeated: the batch's state says where to
continue, and a request keeps its first answer.
"""

from __future__ import annotations

import contextlib
import uuid

from arq.worker import Retry
from redis.exceptions import ResponseError

from cache.logs import get_logger
from worker.backoff import full_jitter_s
from worker.errors import InvalidArgument, Permanent, Transient, Undecodable
from worker.llm.answers import LATE, Answer
from worker.llm.context import LLMContext
from worker.llm.grouping import Group, checked_group
from worker.llm.moves import Later, Overtaken
from worker.llm.providers import BatchesUnsupported, Busy
from worker.llm.requests import is_wrong_type
from worker.llm.rescuer import rescue_orphans
from worker.llm.run import BatchRun
from worker.queue.context import JobContext
from worker.queue.priority import Priority

log = get_logger(__name__)

# Backoff while the provider is unavailable.
_OUTAGE_BASE_S, _OUTAGE_CAP_S = 2.0, 60.0


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

    `full_only` seals full batches only; the rest waits for its maximum age or the cron job.
    """
    try:
        group = checked_group(provider, endpoint, model)
    except InvalidArgument as exc:
        raise Undecodable(str(exc)) from None
    return await _flush(LLMContext.of(ctx), group, full_only=full_only)


async def _flush(context: LLMContext, group: Group, *, full_only: bool = False) -> int:
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
        raise Retry(defer=exc.wait_s) from None
    except Transient as exc:
        wait_s = _backoff_s(context, ctx, exc)
        log.warning("batch.postponed", batch_id=batch_id, error=str(exc), wait_s=round(wait_s, 2))
        raise Retry(defer=wait_s) from None


async def run_llm_request(ctx: JobContext, request_id: str) -> str:
    """
    Answer one request by a direct call, within the rate limits that all workers share.

    Raises:
        Retry: the rate limit delays it, or the provider is unavailable or overloaded.
        Undecodable: the stored request cannot be read; its callers get that error.
    """
    context = LLMContext.of(ctx)
    try:
        request = await context.requests.read(request_id)
    except Undecodable as exc:
        await context.requests.answer(request_id, Answer(kind="undecodable", message=str(exc)))
        raise
    if request is None:
        return "skipped"
    if request.expires_ms is not None and context.now().timestamp() * 1000 >= request.expires_ms:
        await context.requests.answer(request_id, LATE)
        return "late"
    provider = request.group.provider
    limiter = context.limiters[provider]
    wait_s = await limiter.admit(request_id, urgent=request.urgent, tokens=request.tokens)
    if wait_s:
        raise Retry(defer=wait_s)
    try:
        answer = await context.providers[provider].complete(request.group, request.body)
    except Transient as exc:
        wait_s = _backoff_s(context, ctx, exc)
        asked_s = exc.wait_s if isinstance(exc, Busy) else None
        await limiter.release(
            request_id, "busy" if isinstance(exc, Busy) else "other", wait_s=asked_s
        )
        log.warning("llm.postponed", request_id=request_id, error=str(exc), wait_s=round(wait_s, 2))
        raise Retry(defer=wait_s) from None
    except Permanent as exc:
        answer = Answer(kind=type(exc).__name__, message=str(exc))
    await context.requests.answer(request_id, answer)
    await limiter.release(request_id, "ok")
    return "answered"


def _backoff_s(context: LLMContext, ctx: JobContext, exc: Transient) -> float:
    delay_s = full_jitter_s(
        int(ctx["job_try"]), base_s=_OUTAGE_BASE_S, cap_s=_OUTAGE_CAP_S, rng=context.rng
    )
    asked_s = exc.wait_s if isinstance(exc, Busy) else None
    return max(delay_s, asked_s or 0.0)
