"""
JobQueue: what services and the Letta server call. Needs no arq.

Every method that stores something checks its arguments first, raises a named
error (worker/errors.py) when it refuses, and stores all or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from worker.keys import QueueKeys
from worker.llm.client import LLMClient
from worker.options import QueueOptions
from worker.queue.priority import Priority
from worker.webhooks.attempts import AttemptStore
from worker.webhooks.client import Webhooks
from worker.webhooks.deliveries import Delivery, DeliveryStore
from worker.webhooks.secrets import SecretBox

__all__ = ["JobQueue", "QueueOptions"]


class JobQueue(LLMClient):
    """
    The queue's client, over one Redis client; see `worker.open_queue`.

    Raises, from every method:
        QueueUnavailable: the server cannot be reached; nothing is known to be stored.
    """

    def __init__(
        self, client: Any, options: QueueOptions | None = None, *, keys: QueueKeys | None = None
    ) -> None:
        super().__init__(client, keys or QueueKeys(), options or QueueOptions())
        self.deliveries = DeliveryStore(client, self.keys)
        self.attempts = AttemptStore(
            client, self.keys, retention_s=self.options.webhook_retention_s
        )
        self.webhooks = Webhooks(
            self.jobs,
            self.deliveries,
            SecretBox(self.options.webhook_encryption_key),
            self.options.webhooks,
            memory=self._memory,
            job_body=self._body,
        )

    async def aclose(self) -> None:
        """Stop what waits in the background; the Redis client stays its owner's."""
        await self._answers.aclose()

    # -- webhooks --------------------------------------------------------------

    async def send_webhook(
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
    ) -> str:
        """
        Store a webhook for delivery; returns its id, the receiver's `webhook-id`.

        `payload` is bytes, sent as they are, or anything that JSON can hold. A
        `webhook_id` that was used before stores nothing and returns the same
        id: sending again is safe. `secret`, `secrets` (`whsec_...` or `whsk_...`,
        several while one replaces another) sign this one instead of
        LETTA_WEBHOOK_SECRET; `bearer` is sent as `Authorization: Bearer`.
        `headers` are stored encrypted, but for well-known harmless ones
        (worker/webhooks/headers.py): any may carry a key, whatever its name.

        Attempts at one `endpoint_id`, or at one host without it, share limits and
        a circuit breaker. Of deliveries with one `ordering_key` at the same
        endpoint, the next is tried when the one before has ended. At the
        `deadline` (aware) it is dead, whatever is left of its attempts. `on_end`
        names a worker's function that is called with the delivery, as a dict,
        when it has ended: `async def f(ctx, delivery)`, once or more.

        Raises:
            InvalidWebhookURL, InvalidArgument, NotSerializable, PayloadTooLarge.
        """
        return await self.webhooks.send(
            url,
            payload,
            event_type=event_type,
            webhook_id=webhook_id,
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

    async def delivery(self, delivery_id: str) -> Delivery:
        """
        A webhook's state and attempts.

        Raises:
            NotFound: never sent, or ended longer ago than LETTA_WEBHOOK_RETENTION_S.
        """
        return await self.webhooks.get(delivery_id)
