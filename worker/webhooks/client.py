"""
Sends, reads, retries and replays webhooks for a service. Needs no arq.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from worker import tracing
from worker.errors import InvalidArgument, NotFound
from worker.keys import QueueKeys
from worker.queue import arguments
from worker.queue.admission import MemoryGuard
from worker.queue.confirmation import Confirmations
from worker.queue.encoder import JobEncoder
from worker.queue.job import reach
from worker.queue.priority import Priority
from worker.webhooks.deliveries import Delivery, DeliveryStore
from worker.webhooks.endpoints import EndpointStore
from worker.webhooks.operations import EndpointOperations
from worker.webhooks.options import WebhookOptions
from worker.webhooks.selection import Selection, checked
from worker.webhooks.sending import Composer, signing_secrets

DELIVER_WEBHOOK = "deliver_webhook"
PING = "ping"

_MOST_REPLAYED = 10_000


class Webhooks(EndpointOperations):
    """
    `queue.webhooks`.

    Every method raises:
        QueueUnavailable: the server cannot be reached; nothing is known to be stored.
    """

    def __init__(
        self,
        keys: QueueKeys,
        deliveries: DeliveryStore,
        endpoints: EndpointStore,
        *,
        composer: Composer,
        encoder: JobEncoder,
        memory: MemoryGuard,
        confirmations: Confirmations,
        options: WebhookOptions,
    ) -> None:
        super().__init__(endpoints)
        self._keys = keys
        self._deliveries = deliveries
        self._composer = composer
        self._encoder = encoder
        self._memory = memory
        self._confirmations = confirmations
        self._options = options

    # -- sending -----------------------------------------------------------------

    async def send(
        self,
        url: str,
        payload: Any,
        *,
        event_type: str,
        webhook_id: str | None = None,
        secret: str | None = None,
        secrets: Sequence[str] = (),
        bearer: str | None = None,
        headers: Mapping[str, str] | None = None,
        endpoint_id: str | None = None,
        ordering_key: str | None = None,
        deadline: datetime | None = None,
        on_end: str | None = None,
        priority: Priority = Priority.DEFAULT,
        delay_s: float = 0,
        wait_replicas: int | None = None,
    ) -> str:
        """
        Store a webhook for delivery; returns its id, the receiver's `webhook-id`.

        `payload` is bytes, sent unchanged, or any JSON value. A `webhook_id` that
        was used before stores nothing and returns the same id, so sending again is
        safe. `secret` and `secrets` (`whsec_...` or `whsk_...`, several during a
        rotation) sign this webhook instead of LETTA_WEBHOOK_SECRET; `bearer` is
        sent as `Authorization: Bearer`. `headers` are stored encrypted, except
        well-known harmless ones (worker/webhooks/headers.py), because any header
        may contain a key.

        Attempts at one endpoint, the URL with its query or what `endpoint_id` names,
        share limits and a circuit breaker; endpoints of one host share its slots.
        Deliveries with the same `ordering_key` and endpoint are
        attempted one after another: each starts when the one before has ended. At
        the `deadline` (aware) the delivery is dead, even with attempts left.
        `on_end` names a function of the workers, `async def f(ctx, delivery)`; it
        is called with the delivery as a dict at least once after its end.
        `wait_replicas`: as for `queue.jobs.enqueue`.

        Raises:
            InvalidWebhookURL, InvalidArgument, NotSerializable, PayloadTooLarge.
            NotConfirmed: stored, but replicas are missing, and LETTA_QUEUE_WAIT_REQUIRED is set.
        """
        if webhook_id is not None:
            arguments.require_webhook_id(webhook_id)
        id_ = webhook_id or f"msg_{uuid.uuid4().hex}"
        delivery = self._composer.compose(
            id_,
            url,
            payload,
            event_type=event_type,
            secret=secret,
            secrets=secrets,
            bearer=bearer,
            headers=headers,
            endpoint_id=endpoint_id,
            ordering_key=ordering_key,
            deadline=deadline,
            on_end=on_end,
            priority=priority,
            delay_s=delay_s,
        )
        job_id = f"webhook:{id_}"
        with tracing.sending(priority.value, job_id):
            await self._memory.admit()
            create = partial(
                self._deliveries.create,
                id_,
                delivery.fields,
                endpoint=delivery.endpoint,
                host=delivery.host,
                order=delivery.order,
                job_keys=self._keys.job_keys(job_id, priority),
                job_id=job_id,
                job_body=self._encoder.encode(DELIVER_WEBHOOK, [id_]),
                delay_ms=delivery.delay_ms,
            )
            _, confirmed = await self._confirmations.of(lambda: reach(create()), wait_replicas)
        self._confirmations.require(confirmed, id_)
        return id_

    async def ping(self, url: str, **more: Any) -> str:
        """Send a test event of type `ping`, with the options of `send`; returns its id."""
        return await self.send(url, {"type": PING}, event_type=PING, **more)

    # -- reading -----------------------------------------------------------------

    async def get(self, delivery_id: str) -> Delivery:
        """
        Return a webhook's state and attempts.

        Raises:
            NotFound: never sent, or ended longer ago than LETTA_WEBHOOK_RETENTION_S.
        """
        arguments.require_name("delivery_id", delivery_id)
        found = await reach(self._deliveries.read(delivery_id))
        if found is None:
            raise _unknown(delivery_id)
        return found

    async def find(self, wanted: Selection | None = None, *, limit: int = 100) -> list[str]:
        """Ids of deliveries, open ones too; dead and disabled ones without a selection."""
        found: list[str] = []
        async for id_ in self._deliveries.select(checked(wanted)):
            found.append(id_)
            if len(found) >= limit:
                break
        return found

    # -- sending again -----------------------------------------------------------------

    async def retry_now(self, delivery_id: str) -> None:
        """
        Make the next attempt of an open delivery due at once.

        It passes by an open breaker, a pause and a rate limit, once. Its order, its
        deadline and the limits of concurrent attempts hold.

        Raises:
            NotFound: unknown, or its retention has passed.
            InvalidArgument: it has ended, or an attempt is under way.
        """
        arguments.require_name("delivery_id", delivery_id)
        how = await reach(self._deliveries.retry(delivery_id))
        if how == "unknown":
            raise _unknown(delivery_id)
        if how != "due":
            raise InvalidArgument(f"{delivery_id!r} cannot be retried now: {_NOT_DUE[how]}")

    async def replay(
        self, delivery_id: str, *, secrets: Sequence[str] = (), delay_s: float = 0
    ) -> None:
        """
        Send an ended delivery again, under its id, with priority LOW.

        A delivery that succeeded with its own secrets needs them again, in `secrets`.

        Raises:
            NotFound: unknown, or its retention has passed.
            InvalidArgument: it has not ended; its endpoint is disabled; it needs `secrets`.
        """
        arguments.require_name("delivery_id", delivery_id)
        how = await self._replay(delivery_id, arguments.delay_ms(delay_s), secrets)
        if how == "unknown":
            raise _unknown(delivery_id)
        if how != "replayed":
            raise InvalidArgument(f"{delivery_id!r} cannot be replayed: {_REFUSALS[how]}")

    async def replay_many(
        self,
        wanted: Selection | None = None,
        *,
        limit: int = _MOST_REPLAYED,
        rate: float | None = None,
    ) -> dict[str, int]:
        """
        Replay ended deliveries; dead and disabled ones without a selection.

        At most `rate` a second are sent (LETTA_WEBHOOK_REPLAY_RATE), with priority
        LOW, so that new events go first. Returns the number `replayed`, and the
        numbers skipped as `endpoint_disabled`, `secret_needed`, `open` or `unknown`.
        """
        pace = self._options.replay_rate if rate is None else rate
        if not 0 < pace <= 10_000:
            raise InvalidArgument("rate must be more than 0 and at most 10000 a second")
        counts = dict.fromkeys(("replayed", *_REFUSALS, "unknown"), 0)
        ids = await self.find(wanted, limit=min(limit, _MOST_REPLAYED))
        for id_ in ids:
            delay_ms = int(counts["replayed"] * 1000 / pace)
            counts[await self._replay(id_, delay_ms, ())] += 1
        return counts

    async def _replay(self, delivery_id: str, delay_ms: int, secrets: Sequence[str]) -> str:
        token = uuid.uuid4().hex
        job_id = f"webhook-replay:{token}:{delivery_id}"
        url = await reach(self._deliveries.url(delivery_id)) if secrets else None
        own = signing_secrets(None, secrets)
        sealed = self._composer.sealed(delivery_id, url or "", own, None, {})
        return await reach(
            self._deliveries.replay(
                delivery_id,
                token=token,
                job_keys=self._keys.job_keys(job_id, Priority.LOW),
                job_id=job_id,
                job_body=self._encoder.encode(DELIVER_WEBHOOK, [delivery_id]),
                delay_ms=delay_ms,
                deadline_ms=round(self._options.deadline_s * 1000),
                secret=bytes(sealed.get("secret", b"")),
            )
        )


_REFUSALS = {
    "open": "it has not ended",
    "endpoint_disabled": "its endpoint is disabled; enable it first",
    "secret_needed": "its own secrets are deleted after success; pass them again in secrets",
}
_NOT_DUE = {
    "ended": "it has ended; replay it",
    "sending": "an attempt is under way",
    "running": "its job is just being run; try again",
    "jobless": "its job is in no queue; it gets a new one, or ends, within 30 s",
}


def _unknown(delivery_id: str) -> NotFound:
    return NotFound(f"no delivery {delivery_id!r}, or its retention has passed")
