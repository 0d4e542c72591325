"""
Jobs that run after an end: send a request's webhook, delete a batch's files at the provider.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from cache.logs import get_logger
from worker.errors import InvalidArgument, PayloadTooLarge, Permanent
from worker.llm.answers import Answer
from worker.llm.context import LLMContext
from worker.queue.context import JobContext

log = get_logger(__name__)


async def send_llm_callback(ctx: JobContext, url: str | bytes) -> str:
    """
    Send the webhook that reports a request's end.

    The job's id names the request and the caller: llm:callback:<id>:<nth>:<who>. A caller that
    shares the request has <who>.<caller's suffix> there.

    An answer too large for a webhook is left out; the receiver can fetch it by the request's id.
    """
    context, job_id = LLMContext.of(ctx), str(ctx["job_id"])
    _, _, request_id, _, who = job_id.split(":", 4)
    suffix = who.partition(".")[2]
    answer = await context.requests.peek_answer(request_id)
    if answer is None:
        return "expired"
    payload = _payload(f"{request_id}.{suffix}" if suffix else request_id, answer)
    send = partial(
        context.webhooks.send,
        context.prepared.callback_url(url),
        event_type="llm.request.ended",
        # The signature separates its parts with dots, so a webhook id must not have one.
        webhook_id=job_id.replace(".", ":"),
    )
    try:
        try:
            await send(payload)
        except PayloadTooLarge:
            await send({**payload, "response": None})
    except InvalidArgument as exc:
        log.warning("llm.webhook_refused", request_id=request_id, error=str(exc))
        return "refused"
    return "sent"


def _payload(request_id: str, answer: Answer) -> dict[str, Any]:
    error = None if answer.ok else {"kind": answer.kind, "message": answer.message}
    # What came as a malformed answer is for the operator.
    status, response = ("succeeded", answer.body) if answer.ok else ("failed", None)
    return {"id": request_id, "status": status, "response": response, "error": error}


async def delete_llm_files(ctx: JobContext, batch_id: str) -> int:
    """Delete an ended batch's files at the provider (LETTA_LLM_DELETE_FILES); returns how many."""
    context = LLMContext.of(ctx)
    batch = await context.batches.read(batch_id)
    if batch is None or not batch.state.is_end:
        return 0
    names = ["file_id", *(["result_files"] if context.options.delete_files == "all" else [])]
    ids = " ".join(batch.fields.get(name, "") for name in names).split()
    # After a crash or a lost reply an uploaded file's id is unknown; its name finds it.
    unknown = batch.number("uploads") > (1 if batch.fields.get("file_id") else 0)
    since_ms = batch.number("created") if unknown else None
    provider = context.providers[batch.group.provider]
    try:
        deleted = await provider.delete_files(batch_id, ids, since_ms=since_ms)
    except Permanent as exc:
        log.warning("batch.files_kept", batch_id=batch_id, error=str(exc))
        return 0
    log.info("batch.files_deleted", batch_id=batch_id, files=deleted)
    return deleted
