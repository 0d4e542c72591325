"""
Sends the Letta server's callbacks through the queue, instead of one inline try.

Letta posts the outcome of a run, a job or a step inside the request, once and without
a signature. Here the callback is stored, and Letta goes on: it notes the code 202 in
its own columns, and outcomes.py replaces it by the outcome. A callback that the queue
refuses is posted inline, as without the plug-in.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

from letta_redis.plugin.rows import NO_URL, STORED, Kind, jsonable
from letta_redis.plugin.seams import Feature, Seam

if TYPE_CHECKING:
    from letta_redis.plugin.runtime import Runtime

STEP_EVENT = "step.completed"


def _dispatching(kind: Kind) -> Any:
    def replace(runtime: Runtime, original: Any) -> Any:
        @wraps(original)
        async def _dispatch_callback_async(self: Any, callback_info: dict[str, Any]) -> Any:
            now = datetime.now(UTC).replace(tzinfo=None)
            if callback_info["callback_url"] in (None, "", NO_URL):
                return {"callback_sent_at": now, "callback_error": "no callback URL was given"}
            if not runtime.switches.redis_queue:
                return await original(self, callback_info)
            outcomes = runtime.outcomes()
            if outcomes is not None and await outcomes.store(kind, callback_info):
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
        # Without an encryption key, only the workers may add the token: LETTA_WEBHOOK_BEARERS.
        token = self.webhook_key if runtime.seals_webhooks else None
        try:
            await outcomes.queue.send_webhook(
                self.webhook_url,
                {"step_id": step_id},
                event_type=STEP_EVENT,
                webhook_id=f"{step_id}:completed",
                bearer=token or None,
            )
        except Exception as exc:  # noqa: BLE001  (Letta posts it itself)
            outcomes.posted_inline(f"{step_id}:completed", exc)
            return await original(self, step_id)
        runtime.callbacks["stored"] += 1
        return True

    return notify_step_complete


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
            "stores the post's result in the run's columns",
            "(self, run_id, update, actor, refresh_result_messages=True, conversation_id=None)",
            digests=("429df1e445848abc",),
        ),
        Seam(
            "letta.services.job_manager:JobManager.update_job_by_id_async",
            "stores the post's result in the job's columns",
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
