"""The webhook job: one attempt a run, put off by `Retry` until the delivery has ended."""

from __future__ import annotations

from datetime import datetime

import structlog
from arq.worker import Retry

from worker.deps import Deps, JobContext
from worker.effects.deliveries import Attempt, ClaimedDelivery
from worker.effects.http import post_webhook
from worker.policy.delivery import DeliveryState, Outcome, decide
from worker.policy.signing import sign_headers

log = structlog.get_logger("worker.webhook")

_EVENTS = {
    DeliveryState.DELIVERED: "webhook.delivered",
    DeliveryState.WAITING: "webhook.retry_scheduled",
    DeliveryState.DEAD: "webhook.died",
}


async def deliver_webhook(ctx: JobContext, delivery_id: str) -> str:
    """
    Attempt one delivery; returns its state. Safe to run twice: every attempt is
    counted before it is made, and recorded only as the latest.

    Raises:
        Retry: the receiver did not take it; the job runs again after the delay.
    """
    deps = Deps.of(ctx)
    now = deps.now()
    delivery = await deps.queue.deliveries.claim(delivery_id, now)
    if delivery is None:
        return "skipped"
    outcome, ms = await _attempt(deps, delivery, now)
    verdict = decide(
        outcome, attempt=delivery.attempt, schedule=deps.webhooks.schedule, rng=deps.rng
    )
    attempt = Attempt(now, outcome.status, outcome.error, ms)
    await deps.queue.deliveries.record(
        delivery.id, delivery.attempt, attempt, verdict.state, wait_s=verdict.wait_s
    )
    log.info(
        _EVENTS[verdict.state],
        delivery_id=delivery.id,
        attempt=delivery.attempt,
        status=outcome.status,
        error=outcome.error or None,
        ms=ms,
        wait_s=round(verdict.wait_s, 3) if verdict.wait_s else None,
    )
    if verdict.state is DeliveryState.WAITING:
        raise Retry(defer=verdict.wait_s)
    return verdict.state.value


async def _attempt(deps: Deps, delivery: ClaimedDelivery, now: datetime) -> tuple[Outcome, float]:
    secrets = deps.webhooks.secrets
    if delivery.secret is not None:
        secrets = (deps.secrets.open(delivery.secret, owner=delivery.id),)
    headers = {
        "content-type": "application/json",
        "webhook-event-type": delivery.event_type,
        **sign_headers(delivery.id, int(now.timestamp()), delivery.body, secrets),
    }
    reply = await post_webhook(
        deps.http,
        delivery.url,
        headers=headers,
        body=delivery.body,
        timeout_s=deps.webhooks.timeout_s,
        keep_bytes=0,
        max_bytes=deps.webhooks.max_response_bytes,
    )
    if reply.error:
        return Outcome(error=reply.error, permanent=reply.permanent), reply.ms
    return Outcome(status=reply.status), reply.ms
