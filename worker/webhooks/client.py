"""
Sends, reads and replays webhooks for a service, and enables or disables endpoints. Needs no arq.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from cache.encoding import codec
from worker.errors import InvalidArgument, NotFound
from worker.keys import QueueKeys
from worker.queue import arguments
from worker.queue.admission import MemoryGuard
from worker.queue.encoder import JobEncoder
from worker.queue.job import reach
from worker.queue.priority import Priority
from worker.webhooks.deliveries import Delivery, DeliveryStore, Selection
from worker.webhooks.endpoints import Endpoint, EndpointStore, TargetState, WebhookEvent
from worker.webhooks.headers import check_headers, is_secret, is_value
from worker.webhooks.limits import endpoint_of, order_of, target_of
from worker.webhooks.options import WebhookOptions
from worker.webhooks.policy import DeliveryState
from worker.webhooks.secrets import DeliverySecrets
from worker.webhooks.signing import MAX_SECRETS, check_secret

DELIVER_WEBHOOK = "deliver_webhook"
PING = "ping"

_MOST_REPLAYED = 10_000
_EVENT_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")


class Webhooks:
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
        secrets: DeliverySecrets,
        encoder: JobEncoder,
        memory: MemoryGuard,
        options: WebhookOptions,
    ) -> None:
        self._keys = keys
        self._deliveries = deliveries
        self._endpoints = endpoints
        self._secrets = secrets
        self._encoder = encoder
        self._memory = memory
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

        Attempts at one `endpoint_id`, or at one host without it, share limits and
        a circuit breaker. Deliveries with the same `ordering_key` and endpoint are
        attempted one after another: each starts when the one before has ended. At
        the `deadline` (aware) the delivery is dead, even with attempts left.
        `on_end` names a function of the workers, `async def f(ctx, delivery)`; it
        is called with the delivery as a dict at least once after its end.

        Raises:
            InvalidWebhookURL, InvalidArgument, NotSerializable, PayloadTooLarge.
        """
        url = arguments.require_webhook_url(url)
        arguments.require_event_type(event_type)
        if webhook_id is not None:
            arguments.require_webhook_id(webhook_id)
        if endpoint_id is not None:
            arguments.require_id("endpoint_id", endpoint_id)
        id_ = webhook_id or f"msg_{uuid.uuid4().hex}"
        delay_ms = arguments.delay_ms(delay_s)
        fields: dict[str, str | bytes | int] = {
            "url": url,
            "event_type": event_type,
            "body": arguments.webhook_body(payload, max_bytes=self._options.max_bytes),
            "endpoint": endpoint_of(url, endpoint_id),
            "deadline": self._deadline_ms(deadline, delay_ms),
            "priority": arguments.require_priority(priority).value,
        }
        given = check_headers({} if headers is None else headers)
        fields |= self._sealed(id_, url, _signing(secret, secrets), bearer, given)
        clear = {name: value for name, value in given.items() if not is_secret(name)}
        if clear:
            fields["headers"] = codec.encode(clear)
        if endpoint_id is not None:
            fields["endpoint_id"] = endpoint_id
        if ordering_key is not None:
            arguments.require_name("ordering_key", ordering_key, longest=256)
            fields["ordering_key"] = ordering_key
        callback = self._options.on_end if on_end is None else on_end
        if callback:
            arguments.require_job_name(callback, "on_end")
            fields["on_end"] = callback
        target = target_of(url, endpoint_id)
        job_id = f"webhook:{id_}"
        await self._memory.admit()
        await reach(
            self._deliveries.create(
                id_,
                fields,
                target=target,
                order="" if ordering_key is None else order_of(target, ordering_key),
                job_keys=self._keys.job_keys(job_id, priority),
                job_id=job_id,
                job_body=self._encoder.encode(DELIVER_WEBHOOK, [id_]),
                delay_ms=delay_ms,
            )
        )
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
            raise NotFound(f"no delivery {delivery_id!r}, or its retention has passed")
        return found

    async def find(self, wanted: Selection | None = None, *, limit: int = 100) -> list[str]:
        """Ids of ended deliveries; dead and disabled ones without a selection."""
        found: list[str] = []
        async for id_ in self._deliveries.select(_checked(wanted)):
            found.append(id_)
            if len(found) >= limit:
                break
        return found

    async def disabled_endpoints(self) -> list[Endpoint]:
        """Disabled endpoints, the longest disabled first; at most 1,000."""
        return await reach(self._endpoints.disabled())

    async def target(self, url: str = "", *, endpoint_id: str | None = None) -> TargetState:
        """The breaker, pause and queue of a URL's host, or of an endpoint id."""
        _, target, _ = _names(url, endpoint_id)
        return await reach(self._endpoints.target(target))

    async def events(self, *, after: str = "0", limit: int = 100) -> list[WebhookEvent]:
        """
        Events of targets and endpoints, oldest first; about the newest 1,000 are kept.

        Pass the last event's `id` as `after` to continue from there.
        """
        if not isinstance(after, str) or not _EVENT_ID.fullmatch(after):
            raise InvalidArgument("after must be the id of an event, or 0")
        return await reach(self._endpoints.events(after, limit))

    # -- switching -----------------------------------------------------------------

    async def enable(self, url: str = "", *, endpoint_id: str | None = None) -> bool:
        """
        Allow deliveries to an endpoint again; returns False when it was not disabled.

        Its ended deliveries can be sent with `replay_many`.
        """
        endpoint, target, name = _names(url, endpoint_id)
        return await reach(self._endpoints.switch(endpoint, on=True, target=target, name=name))

    async def disable(self, url: str = "", *, endpoint_id: str | None = None) -> bool:
        """
        Stop deliveries to an endpoint; returns False when it was disabled already.

        Its deliveries end as `disabled` and can be replayed later.
        """
        endpoint, target, name = _names(url, endpoint_id)
        return await reach(self._endpoints.switch(endpoint, on=False, target=target, name=name))

    # -- replaying -----------------------------------------------------------------

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
            raise NotFound(f"no delivery {delivery_id!r}, or its retention has passed")
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
        sealed = self._sealed(delivery_id, url or "", _signing(None, secrets), None, {})
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

    # -- inside ----------------------------------------------------------------

    def _deadline_ms(self, deadline: datetime | None, delay_ms: int) -> int:
        now = arguments.now_ms()
        if deadline is None:
            # A delayed delivery has its full time after the delay.
            return now + delay_ms + round(self._options.deadline_s * 1000)
        found = arguments.unix_ms("deadline", deadline)
        if found <= now + delay_ms:
            raise InvalidArgument("the deadline is before the first attempt")
        return found

    def _sealed(
        self,
        owner: str,
        url: str,
        signing: Sequence[str],
        bearer: str | None,
        headers: Mapping[str, str],
    ) -> dict[str, Any]:
        hidden = {name: value for name, value in headers.items() if is_secret(name)}
        if bearer is not None:
            if not isinstance(bearer, str) or not is_value(bearer):
                raise InvalidArgument("bearer must be one line of ASCII without outer spaces")
            if "authorization" in headers:
                raise InvalidArgument("headers: bearer gives the authorization; remove one of them")
            hidden |= check_headers({"authorization": f"Bearer {bearer}"})
        if not signing and not hidden:
            return {}
        text = json.dumps({"signing": list(signing), "headers": hidden})
        try:
            sealed = self._secrets.seal(text, owner=owner, url=url)
        except InvalidArgument as exc:
            if signing or bearer is not None:
                raise
            names = ", ".join(sorted(hidden))
            raise InvalidArgument(f"the headers {names} may carry secrets: {exc}") from None
        return {"secret": sealed, "sealed": 1}


_REFUSALS = {
    "open": "it has not ended",
    "endpoint_disabled": "its endpoint is disabled; enable it first",
    "secret_needed": "its own secrets are deleted after success; pass them again in secrets",
}


def _signing(secret: str | None, secrets: Iterable[str]) -> list[str]:
    if isinstance(secrets, str | bytes) or not isinstance(secrets, Iterable):
        raise InvalidArgument("secrets must be a list of secrets")
    found = [*([] if secret is None else [secret]), *secrets]
    if len(found) > MAX_SECRETS:
        raise InvalidArgument(f"at most {MAX_SECRETS} secrets, not {len(found)}")
    for one in found:
        try:
            check_secret(one)
        except ValueError as exc:
            raise InvalidArgument(f"secret: {exc}") from None
    return found


def _names(url: str, endpoint_id: str | None) -> tuple[str, str, str]:
    if endpoint_id is None:
        arguments.require_webhook_url(url)
    else:
        arguments.require_id("endpoint_id", endpoint_id)
    return endpoint_of(url, endpoint_id), target_of(url, endpoint_id), endpoint_id or url


def _checked(wanted: Selection | None) -> Selection:
    found = wanted or Selection()
    for what, name in (("event_type", found.event_type), ("endpoint_id", found.endpoint_id)):
        if name is not None:
            arguments.require_name(what, name)
    if found.url is not None:
        arguments.require_webhook_url(found.url)
    for state in found.states:
        if not isinstance(state, DeliveryState):
            raise InvalidArgument(f"states: {state!r} is not a DeliveryState")
    for what, moment in (("since", found.since), ("until", found.until)):
        if moment is not None:
            arguments.unix_ms(what, moment)
    return found
