"""
Upkeep of webhooks: a delivery that is open has a live job, whatever became of its last one.

A job whose workers died under it too often is a dead letter of the queue. Of a
delivery's job that is never the last word: a delivery ends by its own attempts
and deadline, and being cut off uses up an attempt. A job that somebody aborted,
purged or deleted does not come back: its delivery ends as dead, to be replayed.
"""

from __future__ import annotations

import structlog

from worker.queue.context import JobContext
from worker.webhooks.attempts import REPORT_WEBHOOK, AttemptStore
from worker.webhooks.client import DELIVER_WEBHOOK
from worker.webhooks.context import WebhookContext

log = structlog.get_logger(__name__)

RESCUE_WEBHOOKS = "rescue_webhooks"
# Every quarter of a minute: a delivery waits no longer for its job's revival.
RESCUE_CRON = "*/15 * * * * *"
_PAGE = 500
# An open delivery's job is looked for no more often than this, and by one run for so many.
_SEEN_S = 15.0
_MOST_PAGES = 10
_PREFIXES = ("webhook:", "webhook-replay:", "webhook-end:")


async def rescue_webhooks(ctx: JobContext) -> int:
    """Enqueue the dead letters of open deliveries again; returns how many. Ends those without a job."""
    context = WebhookContext.of(ctx)
    rescued = 0
    for offset in range(0, await context.dead.count(), _PAGE):
        for letter in await context.dead.list(limit=_PAGE, offset=offset):
            # The body may be unreadable, so that its name alone decides nothing.
            ours = letter.name in {DELIVER_WEBHOOK, REPORT_WEBHOOK} or letter.reason == "poison"
            # What cannot be read would only come back as a dead letter once more.
            ours = ours and letter.reason != "undecodable"
            if ours and letter.id.startswith(_PREFIXES):
                rescued += await context.dead.retry(letter.id)
    if rescued:
        log.warning("webhook.jobs_rescued", jobs=rescued)
    await _end_jobless(context.attempts)
    return rescued


async def _end_jobless(attempts: AttemptStore) -> None:
    for _ in range(_MOST_PAGES):
        seen, ended = await attempts.end_jobless(seen_s=_SEEN_S, most=_PAGE)
        for id_ in ended:
            log.warning("webhook.job_removed", delivery_id=id_)
        if seen < _PAGE:
            return
