"""
Sends the Letta server's callbacks through the queue, instead of one inline try.

Letta posts what a run, a job or a step has become from within the request, once and
without a signature. Here the post is stored, and Letta goes on. It notes the code 202
in its own columns; outcomes.py writes there what came of it. What the queue
refuses is posted inline, as without the plug-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

from cache.logs import get_logger
from letta_redis.plugin.rows import NO_URL, STORED, Kind
from letta_redis.plugin.seams import Feature, Seam

if TYPE_CHECKING:
    from letta_redis.plugin.runtime import Runtime

log = get_logger("letta_redis")

STEP_EVENT = "step.completed"


async def store_callback(runtime: Runtime, kind: Kind, info: Mapping[str, Any]) -> bool:
    """
    Store the callback of a run or a job. False if the queue refuses, or its half is off.

    Its id is that of the run and its status: two updates to the same status post once.
    """
    outcomes = runtime.outcomes()
    if outcomes is None:
        return False
    owner = info[f"{kind}_id"]
    status = _text(info["status"])
    webhook_id = f"{owner}:{status}"
    try:
        await outcomes.expect(webhook_id)
        await outcomes.queue.send_webhook(
            info["callback_url"],
            payload_of(kind, info),
            event_type=f"{kind}.{status}",
            webhook_id=webhook_id,
        )
    except Exception as exc:  # noqa: BLE001  (Letta's own post is the remedy for all of them)
        _sent_inline(runtime, webhook_id, exc)
        return False
    runtime.callbacks["stored"] += 1
    return True


def payload_of(kind: Kind, info: Mapping[str, Any]) -> dict[str, Any]:
    """The body of Letta's own post, with what JSON has no words for as text."""
    completed_at = info["completed_at"]
    return {
        f"{kind}_id": info[f"{kind}_id"],
        "status": _text(info["status"]),
        "completed_at": completed_at.isoformat() if completed_at else None,
        "metadata": jsonable(info["metadata"]),
    }


def jsonable(value: Any) -> Any:
    """Times, models and enums as pydantic writes them; Letta's own post would fail on them."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, serialize_unknown=True)


def _dispatching(kind: Kind) -> Any:
    def replace(runtime: Runtime, original: Any) -> Any:
        @wraps(original)
        async def _dispatch_callback_async(self: Any, callback_info: dict[str, Any]) -> Any:
            now = datetime.now(UTC).replace(tzinfo=None)
            if callback_info["callback_url"] in (None, "", NO_URL):
                return {"callback_sent_at": now, "callback_error": "no callback URL was given"}
            if not runtime.switches.redis_queue:
                return await original(self, callback_info)
            if await store_callback(runtime, kind, callback_info):
                return {"callback_sent_at": now, "callback_status_code": STORED}
            readable = {**callback_info, "metadata": jsonable(callback_info["metadata"])}
            return await original(self, readable)

        return _dispatch_callback_async

    return replace


def _announcing(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def notify_step_complete(self: Any, step_id: str) -> Any:
        outcomes = runtime.outcomes()
        if outcomes is None or not self.webhook_url or not runtime.switches.redis_queue:
            return await original(self, step_id)
        # Without a key to seal it, the token is the workers' to add: LETTA_WEBHOOK_BEARERS.
        token = self.webhook_key if runtime.seals_webhooks else None
        try:
            await outcomes.queue.send_webhook(
                self.webhook_url,
                {"step_id": step_id},
                event_type=STEP_EVENT,
                webhook_id=f"{step_id}:completed",
                bearer=token or None,
            )
        except Exception as exc:  # noqa: BLE001  (Letta's own post is the remedy for all of them)
            _sent_inline(runtime, f"{step_id}:completed", exc)
            return await original(self, step_id)
        runtime.callbacks["stored"] += 1
        return True

    return notify_step_complete


def _sent_inline(runtime: Runtime, webhook_id: str, reason: Exception) -> None:
    name = type(reason).__name__
    runtime.callbacks[f"inline: {name}"] += 1
    log.warning("letta.callback_inline", webhook_id=webhook_id, reason=name, error=str(reason))


def _text(status: Any) -> str:
    return str(getattr(status, "value", status))


FEATURE = Feature(
    "callbacks",
    "queue",
    (
        Seam(
            "letta.services.run_manager:RunManager._dispatch_callback_async",
            "stores the callback of a run that has ended",
            "(self, callback_info)",
            digests=("1c6eb449c705a852",),
            replace=_dispatching("run"),
        ),
        Seam(
            "letta.services.job_manager:JobManager._dispatch_callback_async",
            "stores the callback of a job that has ended",
            "(self, callback_info)",
            digests=("82a15e6773bc74c1",),
            replace=_dispatching("job"),
        ),
        Seam(
            "letta.services.run_manager:RunManager.update_run_by_id_async",
            "writes what the post returned into the run's columns",
            "(self, run_id, update, actor, refresh_result_messages=True, conversation_id=None)",
            digests=("429df1e445848abc",),
        ),
        Seam(
            "letta.services.job_manager:JobManager.update_job_by_id_async",
            "writes what the post returned into the job's columns",
            "(self, job_id, job_update, actor, safe_update=False)",
            digests=("f57c9eecb304e612",),
        ),
        Seam(
            "letta.services.webhook_service:WebhookService.notify_step_complete",
            "stores the webhook of a step that has ended",
            "(self, step_id)",
            digests=("6f76b6d7861817a9",),
            replace=_announcing,
        ),
    ),
)
