"""
Retries the dead letters of open deliveries, and ends open deliveries without a job.

The queue makes a job a dead letter when its workers died too often. A delivery's
job is then enqueued again, because a delivery ends only by its own attempts and
deadline; an interrupted attempt counts. A job that somebody aborted, purged or
deleted is not restored: its delivery ends as dead and can be replayed.
"""

from __future__ import annotations

from cache.logs import get_logger
from worker.queue.context import JobContext
from worker.webhooks.attempts import MOST_JOBLESS, REPORT_WEBHOOK, AttemptStore
from worker.webhooks.client import DELIVER_WEBHOOK
from worker.webhooks.context import WebhookContext

log = get_logger(__name__)

RESCUE_WEBHOOKS = "rescue_webhooks"
# Also the longest time that a delivery waits for its rescue.
RESCUE_CRON = "*/15 * * * * *"
# An open delivery's job is checked at most this often; one run checks at most _MOST_PAGES pages.
_SEEN_S = 15.0
_MOST_PAGES = 50
_PREFIXES = ("webhook:", "webhook-replay:", "webhook-end:")


async def rescue_webhooks(ctx: JobContext) -> int:
    """Retry the dead letters of open deliveries and end those without a job; returns the retries."""
    context = WebhookContext.of(ctx)
    rescued = 0
    # Names only: the bodies of all dead letters may not fit into this process's memory.
    async for id_, name, reason in context.dead.names(_PREFIXES):
        # A poison job's body may be unreadable, so its name may be missing.
        ours = name in {DELIVER_WEBHOOK, REPORT_WEBHOOK} or reason == "poison"
        # What cannot be read would only come back as a dead letter once more.
        if ours and reason != "undecodable":
            rescued += await context.dead.retry(id_)
    if rescued:
        log.warning("webhook.jobs_rescued", jobs=rescued)
    await _end_jobless(context.attempts)
    return rescued


async def _end_jobless(attempts: AttemptStore) -> None:
    for _ in range(_MOST_PAGES):
        seen, ended = await attempts.end_jobless(seen_s=_SEEN_S)
        for id_ in ended:
            log.warning("webhook.job_removed", delivery_id=id_)
        if seen < MOST_JOBLESS:
            return
