"""
The LLM jobs: seal waiting requests into batches, carry a batch to its answers,
answer an urgent request by itself.

A run may be cut off anywhere and made again: the batch's state says where to go
on, and a request's first answer is the one that stays.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import structlog
from arq.worker import Retry

from worker.client import RUN_LLM_REQUEST
from worker.deps import Deps, JobContext
from worker.effects.batches import Batch, BatchState, PreparedJob, StoredRequest
from worker.effects.providers import BatchesUnsupported, OpenAIProvider, RemoteBatch
from worker.effects.queue import job_body
from worker.errors import Permanent, Transient
from worker.policy.batch import Answer, Group, read_item
from worker.policy.priority import Priority

log = structlog.get_logger("worker.batch")

RUN_LLM_BATCH = "run_llm_batch"
# After an outage of the provider: wait a little longer each time, up to a minute.
_OUTAGE_BASE_S, _OUTAGE_CAP_S = 1.0, 60.0

__all__ = [
    "RUN_LLM_BATCH",
    "RUN_LLM_REQUEST",
    "flush_llm_batches",
    "flush_llm_group",
    "run_llm_batch",
    "run_llm_request",
]


async def flush_llm_batches(ctx: JobContext) -> int:
    """Seal every group's waiting requests; returns how many batches were made."""
    deps = Deps.of(ctx)
    groups = await deps.queue.batches.groups()
    return sum([await _flush(deps, group) for group in groups])


async def flush_llm_group(
    ctx: JobContext, provider: str, endpoint: str, model: str, *, full_only: bool = False
) -> int:
    """
    Seal one group's waiting requests; returns how many batches were made.

    `full_only` leaves what does not fill a batch to its greatest age or the cron.
    """
    deps = Deps.of(ctx)
    least = deps.llm.max_requests if full_only else 1
    return await _flush(deps, Group(provider, endpoint, model), least=least)


async def run_llm_batch(ctx: JobContext, batch_id: str) -> str:
    """
    Carry a batch one step further, until every request of it is answered.

    Raises:
        Retry: the provider works on it, or is away; the job runs again later.
    """
    deps = Deps.of(ctx)
    batch = await deps.queue.batches.batch(batch_id)
    if batch is None or batch.state in {BatchState.DONE, BatchState.FAILED}:
        return "skipped"
    provider = deps.providers[batch.group.provider]
    try:
        if batch.state is not BatchState.SUBMITTED:
            return await _submit(deps, provider, batch)
        return await _collect(deps, provider, batch)
    except BatchesUnsupported:
        await _answer_singly(deps, provider, batch)
        return await _end(deps, batch, BatchState.DONE, error="")
    except Transient as exc:
        wait_s = min(_OUTAGE_CAP_S, _OUTAGE_BASE_S * 2.0 ** min(ctx["job_try"], 10)) * deps.rng()
        log.warning("batch.postponed", batch_id=batch_id, error=str(exc), wait_s=round(wait_s, 2))
        raise Retry(defer=wait_s) from None
    except Permanent as exc:
        await _answer_all(deps, batch, Answer(kind="batch_refused", message=str(exc)))
        return await _end(deps, batch, BatchState.FAILED, error=str(exc))


async def run_llm_request(ctx: JobContext, request_id: str) -> str:
    """
    Answer one urgent request by the synchronous endpoint.

    Raises:
        Retry: the provider is away or overloaded.
    """
    deps = Deps.of(ctx)
    found = await deps.queue.batches.request(request_id)
    if found is None:
        return "skipped"
    request, group = found
    try:
        await _answer_one(deps, deps.providers[group.provider], group, request)
    except Transient as exc:
        wait_s = min(_OUTAGE_CAP_S, _OUTAGE_BASE_S * 2.0 ** min(ctx["job_try"], 10)) * deps.rng()
        log.warning("llm.postponed", request_id=request_id, error=str(exc), wait_s=round(wait_s, 2))
        raise Retry(defer=wait_s) from None
    return "answered"


async def _flush(deps: Deps, group: Group, *, least: int = 1) -> int:
    batches, made = deps.queue.batches, 0
    while True:
        batch_id = uuid.uuid4().hex
        job = _batch_job(deps, batch_id)
        moved = await batches.seal(
            group,
            batch_id,
            limit=deps.llm.max_requests,
            least=least,
            job=job,
            job_keys=deps.queue.jobs.job_keys(job.id, Priority.DEFAULT),
        )
        if not moved:
            return made
        made += 1
        log.info("batch.sealed", batch_id=batch_id, requests=moved, model=group.model)


def _batch_job(deps: Deps, batch_id: str) -> PreparedJob:
    now_ms = int(deps.now().timestamp() * 1000)
    return PreparedJob(
        f"llm:batch:{batch_id}", job_body(RUN_LLM_BATCH, [batch_id], {}, now_ms=now_ms)
    )


async def _submit(deps: Deps, provider: OpenAIProvider, batch: Batch) -> str:
    remote: RemoteBatch | None = None
    if batch.state is BatchState.SUBMITTING:
        # An earlier run may have submitted it and not lived to write that down.
        remote = await provider.find_batch(batch.id)
    if remote is None:
        lines = [line async for line in _lines(deps, batch)]
        if not lines:
            return await _end(deps, batch, BatchState.DONE, error="")
        file_id = await provider.upload(f"{batch.id}.jsonl", lines)
        if not await deps.queue.batches.move(batch, BatchState.SUBMITTING):
            return "skipped"
        batch = _as(batch, BatchState.SUBMITTING)
        remote = await provider.create_batch(batch.group, file_id, batch.id)
    await deps.queue.batches.move(batch, BatchState.SUBMITTED, provider_id=remote.id)
    log.info("batch.submitted", batch_id=batch.id, provider_id=remote.id, requests=batch.size)
    raise Retry(defer=deps.llm.poll_interval_s)


async def _lines(deps: Deps, batch: Batch) -> AsyncIterator[bytes]:
    async for page in deps.queue.batches.unanswered(batch.id):
        for request in page:
            if await _is_late(deps, request):
                continue
            head = {"custom_id": request.id, "method": "POST", "url": batch.group.endpoint}
            # The body is JSON already; decoding it only to encode it again would double the work.
            yield json.dumps(head).encode()[:-1] + b', "body": ' + request.body + b"}"


async def _collect(deps: Deps, provider: OpenAIProvider, batch: Batch) -> str:
    remote = await provider.read_batch(batch.provider_id)
    if not remote.ended:
        raise Retry(defer=deps.llm.poll_interval_s)
    answered = 0
    for file_id in remote.output_files:
        async for row in provider.read_lines(file_id):
            answered += await _take(deps, row)
    # Both files are read: what has no line was refused whole, or cut off.
    kind = "batch_failed" if remote.status == "failed" else f"batch_{remote.status}_without_item"
    await _answer_all(deps, batch, Answer(kind=kind, message=remote.error))
    log.info("batch.answered", batch_id=batch.id, status=remote.status, items=answered)
    state = BatchState.FAILED if remote.status == "failed" else BatchState.DONE
    return await _end(deps, batch, state, error=remote.error)


async def _take(deps: Deps, row: Mapping[str, Any]) -> bool:
    return await deps.queue.batches.answer(str(row.get("custom_id")), read_item(row))


async def _answer_singly(deps: Deps, provider: OpenAIProvider, batch: Batch) -> None:
    """For endpoints without batches: every request by itself, a bounded number at a time."""
    slots = asyncio.Semaphore(deps.llm.concurrency)

    async def one(request: StoredRequest) -> None:
        async with slots:
            await _answer_one(deps, provider, batch.group, request)

    async for page in deps.queue.batches.unanswered(batch.id):
        results = await asyncio.gather(*(one(request) for request in page), return_exceptions=True)
        for result in results:
            # Those that were answered stay so; the batch is run again for the rest.
            if isinstance(result, BaseException):
                raise result


async def _answer_one(
    deps: Deps, provider: OpenAIProvider, group: Group, request: StoredRequest
) -> None:
    if not await _is_late(deps, request):
        try:
            answer = await provider.complete(group, request.body)
        except Permanent as exc:
            answer = Answer(kind=type(exc).__name__, message=str(exc))
        await deps.queue.batches.answer(request.id, answer)


async def _is_late(deps: Deps, request: StoredRequest) -> bool:
    if request.deadline_ms is None or deps.now().timestamp() * 1000 < request.deadline_ms:
        return False
    late = Answer(kind="deadline_exceeded", message="its deadline passed before it was sent")
    await deps.queue.batches.answer(request.id, late)
    return True


async def _answer_all(deps: Deps, batch: Batch, answer: Answer) -> None:
    async for page in deps.queue.batches.unanswered(batch.id):
        for request in page:
            await deps.queue.batches.answer(request.id, answer)


async def _end(deps: Deps, batch: Batch, state: BatchState, *, error: str) -> str:
    await deps.queue.batches.move(batch, state, error=error)
    return state.value


def _as(batch: Batch, state: BatchState) -> Batch:
    return Batch(batch.id, state, batch.group, batch.size, batch.provider_id)
