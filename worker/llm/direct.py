"""
The job that answers one request by a direct call, within limits that all workers share.
"""

from __future__ import annotations

import asyncio

from arq.worker import Retry

from cache.logs import get_logger
from worker.backoff import full_jitter_s
from worker.errors import Permanent, Transient, Undecodable
from worker.llm.answers import LATE, Answer, checked
from worker.llm.context import LLMContext
from worker.llm.providers import Busy
from worker.llm.requests import StoredRequest
from worker.queue.context import JobContext

log = get_logger(__name__)

# Backoff while the provider is unavailable.
_OUTAGE_BASE_S, _OUTAGE_CAP_S = 2.0, 60.0


async def run_llm_request(ctx: JobContext, request_id: str) -> str:
    """
    Answer one request by a direct call, within the rate limits that all workers share.

    Raises:
        Retry: the rate limit delays it, or the provider is unavailable, overloaded, or gave no
            answer.
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
    left_s = _left_s(context, request)
    if left_s is not None and left_s <= 0:
        await context.requests.answer(request_id, LATE)
        return "late"
    limiter = context.limiters[request.group.provider]
    wait_s = await limiter.admit(request_id, urgent=request.urgent, tokens=request.tokens)
    if wait_s:
        raise _again(wait_s, left_s)
    begun = context.now()
    try:
        answer = await _answered(context, request, left_s, run=int(ctx["job_try"]))
    except Transient as exc:
        wait_s = backoff_s(context, ctx, exc)
        asked_s = exc.wait_s if isinstance(exc, Busy) else None
        await limiter.release(
            request_id, "busy" if isinstance(exc, Busy) else "other", wait_s=asked_s
        )
        log.warning("llm.postponed", request_id=request_id, error=str(exc), wait_s=round(wait_s, 2))
        raise _again(wait_s, left_s) from None
    run_s = (context.now() - begun).total_seconds()
    await context.requests.answer(request_id, answer, run_s=run_s)
    await limiter.release(request_id, "ok")
    return "late" if answer is LATE else "answered"


async def _answered(
    context: LLMContext, request: StoredRequest, left_s: float | None, *, run: int
) -> Answer:
    """
    The answer of one call, or the error that it ended with.

    Raises:
        Transient: there is none yet.
    """
    provider = context.providers[request.group.provider]
    try:
        async with asyncio.timeout(left_s) as due:
            answer = await provider.complete(request.group, request.body)
    except TimeoutError:
        if due.expired():
            return LATE
        raise
    except Permanent as exc:
        return Answer(kind=type(exc).__name__, message=str(exc))
    answer = checked(answer, request.group.endpoint)
    if answer.retryable:
        tries = await context.requests.count_unanswered(request.id, run=run)
        if tries < context.options.item_max_tries:
            raise Transient(f"{answer.kind}: {answer.message}")
    return answer


def _left_s(context: LLMContext, request: StoredRequest) -> float | None:
    """Seconds until the last of the callers' deadlines; None if one has none."""
    if request.expires_ms is None:
        return None
    return request.expires_ms / 1000 - context.now().timestamp()


def _again(wait_s: float, left_s: float | None) -> Retry:
    """Another run after the wait, or at the deadline if that comes first."""
    return Retry(defer=wait_s if left_s is None else min(wait_s, max(0.0, left_s)))


def backoff_s(context: LLMContext, ctx: JobContext, exc: Transient) -> float:
    """The wait after a failure of the provider: with jitter, and at least what it asked for."""
    delay_s = full_jitter_s(
        int(ctx["job_try"]), base_s=_OUTAGE_BASE_S, cap_s=_OUTAGE_CAP_S, rng=context.rng
    )
    asked_s = exc.wait_s if isinstance(exc, Busy) else None
    return max(delay_s, asked_s or 0.0)
