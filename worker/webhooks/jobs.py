"""The webhook jobs: one run makes one attempt and retries until the delivery ends; one reports the end."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import datetime

from arq.worker import Retry

from cache.logs import get_logger
from worker.errors import InvalidArgument
from worker.http.client import HTTPReply, post_webhook
from worker.http.scrub import scrub, spellings
from worker.http.urls import read_url
from worker.queue.arguments import require_job_name
from worker.queue.context import JobContext
from worker.queue.priority import Priority
from worker.webhooks import ed25519
from worker.webhooks.attempts import Attempt, ClaimedDelivery, EndedUnsent, Throttled
from worker.webhooks.context import WebhookContext
from worker.webhooks.headers import is_secret
from worker.webhooks.limits import digest
from worker.webhooks.policy import DeliveryState, Outcome, Verdict, decide, parse_retry_after
from worker.webhooks.records import REMEDIES, UnreadableDelivery
from worker.webhooks.secrets import HIDDEN
from worker.webhooks.signing import sign_headers

log = get_logger(__name__)
_levels = logging.getLogger(__name__)

_EVENTS = {
    DeliveryState.DELIVERED: "webhook.delivered",
    DeliveryState.WAITING: "webhook.retry_scheduled",
    DeliveryState.DEAD: "webhook.died",
    DeliveryState.DISABLED: "webhook.refused_endpoint_disabled",
}
_OPERATIONAL = {
    "circuit_opened": "webhook.circuit_opened",
    "circuit_closed": "webhook.circuit_closed",
    "endpoint_disabled": "webhook.endpoint_disabled",
}


async def deliver_webhook(ctx: JobContext, delivery_id: str) -> str:
    """
    Attempt one delivery; returns its state.

    Safe to run twice: every attempt is counted before it is made, and only the
    latest attempt can be recorded.

    Raises:
        Retry: the receiver did not take it, or is held back; the job runs again later.
        Undecodable: what is stored of it is not what was sent; it ends so.
    """
    context = WebhookContext.of(ctx)
    now = context.now()
    try:
        delivery = await context.attempts.begin(
            delivery_id,
            now,
            context.options.limits,
            max_attempts=context.options.schedule.max_attempts,
        )
    except UnreadableDelivery as exc:
        await _end_unreadable(context, delivery_id, exc.attempt, now)
        raise
    if delivery is None:
        return "skipped"
    if isinstance(delivery, Throttled):
        if _levels.isEnabledFor(logging.DEBUG):
            reason, wait_s = delivery.reason, delivery.wait_s
            log.debug("webhook.throttled", delivery_id=delivery_id, reason=reason, wait_s=wait_s)
        raise Retry(defer=delivery.wait_s)
    if isinstance(delivery, EndedUnsent):
        log.info(_EVENTS[delivery.state], delivery_id=delivery_id, reason=delivery.reason)
        return delivery.state.value
    reply = await _attempt(context, delivery, now)
    verdict = decide(
        _outcome(reply, context.now()),
        attempt=delivery.charged,
        schedule=context.options.schedule,
        rng=context.rng,
        left_s=delivery.left_s,
        internal_failures=delivery.internal_failures,
    )
    await _record(context, delivery, now, reply, verdict)
    if verdict.state is DeliveryState.WAITING:
        raise Retry(defer=verdict.wait_s)
    return verdict.state.value


async def _end_unreadable(
    context: WebhookContext, delivery_id: str, attempt: int, now: datetime
) -> None:
    ended = Attempt(now, None, "undecodable", 0.0)
    verdict = Verdict(DeliveryState.DEAD, reason="undecodable")
    limits, most = context.options.limits, context.options.schedule.max_attempts
    await context.attempts.record(
        delivery_id, attempt, ended, verdict, limits, draw=0.0, max_attempts=most
    )
    log.error("webhook.undecodable", delivery_id=delivery_id)


async def report_webhook(ctx: JobContext, delivery_id: str) -> str:
    """Enqueue the delivery's `on_end` function, once per delivery and replay."""
    context = WebhookContext.of(ctx)
    found = await context.deliveries.on_end(delivery_id)
    if found is None:
        return "skipped"
    name, replays = found
    delivery = await context.deliveries.read(delivery_id)
    if delivery is None:
        return "skipped"
    # A digest, because a delivery's id may be as long as a job's id may be.
    job_id = f"webhook-ended:{replays}:{digest(delivery_id)}"
    # Its id is one that callers may not choose, so it goes past their door.
    shown = delivery.to_dict()
    if context.secrets.hides_urls:
        # A job's body is stored in clear; the function can read the URL by the delivery's id.
        shown["url"] = HIDDEN
    require_job_name(name)
    body = context.encoder.encode(name, [shown])
    await context.jobs.put(job_id, body, priority=Priority.DEFAULT, delay_ms=0, due_ms=None)
    return name


async def _attempt(context: WebhookContext, delivery: ClaimedDelivery, now: datetime) -> HTTPReply:
    try:
        url = context.secrets.open_url(delivery.url, owner=delivery.id)
        headers = _headers(context, delivery, url, now)
    except InvalidArgument:
        # This worker has another encryption key than the client; the operator must fix it.
        return HTTPReply(None, b"", None, 0.0, error="secret_unusable", internal=True)
    reply = await post_webhook(
        context.http,
        url,
        headers=headers,
        body=delivery.body,
        timeout_s=context.options.timeout_s,
        keep_bytes=context.options.keep_response_bytes,
        max_bytes=context.options.max_response_bytes,
    )
    hides_urls = context.secrets.hides_urls
    if delivery.secret is None and "authorization" not in headers and not hides_urls:
        return reply
    sent = [v for k, v in headers.items() if is_secret(k) and not k.startswith("webhook-")]
    if hides_urls:
        target = read_url(url).target
        sent += [target, target.partition("?")[2]]
    return replace(reply, body=scrub(reply.body, spellings(sent), is_cut=True))


def _headers(
    context: WebhookContext, delivery: ClaimedDelivery, url: str, now: datetime
) -> dict[str, str]:
    secrets, hidden = context.options.secrets, {}
    if delivery.secret is not None:
        opened = json.loads(context.secrets.open(delivery.secret, owner=delivery.id, url=url))
        hidden = opened["headers"]
        # A delivery with only a bearer token is still signed by the worker's secrets.
        secrets = tuple(opened["signing"]) or secrets
    token = context.options.bearers.get(url)
    if token is not None and "authorization" not in hidden:
        hidden = {**hidden, "authorization": f"Bearer {token}"}
    signed = sign_headers(
        delivery.id,
        int(now.timestamp()),
        delivery.body,
        secrets,
        sign_ed25519=ed25519.sign,
    )
    return {
        "content-type": "application/json",
        **delivery.headers,
        **hidden,
        "webhook-event-type": delivery.event_type,
        **signed,
    }


def _outcome(reply: HTTPReply, now: datetime) -> Outcome:
    return Outcome(
        status=reply.status,
        error=reply.error,
        permanent=reply.permanent,
        internal=reply.internal,
        retry_after_s=parse_retry_after(reply.retry_after, now),
    )


async def _record(
    context: WebhookContext,
    delivery: ClaimedDelivery,
    now: datetime,
    reply: HTTPReply,
    verdict: Verdict,
) -> None:
    attempt = Attempt(now, reply.status, reply.error, reply.ms, reply.body)
    events = await context.attempts.record(
        delivery.id,
        delivery.attempt,
        attempt,
        verdict,
        context.options.limits,
        draw=context.rng(),
        max_attempts=context.options.schedule.max_attempts,
        wait_s=delivery.wait_s,
    )
    _log_outcome(delivery, reply, verdict)
    for event in events:
        log.warning(_OPERATIONAL[event], delivery_id=delivery.id)


def _log_outcome(delivery: ClaimedDelivery, reply: HTTPReply, verdict: Verdict) -> None:
    if not _levels.isEnabledFor(logging.INFO):
        # Building a line that is dropped would take a tenth of an attempt's time.
        return
    log.info(
        _EVENTS[verdict.state],
        delivery_id=delivery.id,
        attempt=delivery.attempt,
        status=reply.status,
        error=reply.error or None,
        reason=verdict.reason or None,
        ms=reply.ms,
        wait_s=round(verdict.wait_s, 3) if verdict.wait_s else None,
        remedy=REMEDIES.get(reply.error),
    )
