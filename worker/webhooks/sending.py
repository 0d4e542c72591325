"""Turns the arguments of `send` into a delivery's record, and seals what nobody may read in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cache.encoding import codec
from worker.errors import InvalidArgument
from worker.queue import arguments
from worker.queue.encoder import now_ms
from worker.queue.priority import Priority
from worker.webhooks.headers import check_headers, is_secret, is_value
from worker.webhooks.limits import endpoint_of, host_of, order_of
from worker.webhooks.options import WebhookOptions
from worker.webhooks.secrets import DeliverySecrets
from worker.webhooks.signing import MAX_SECRETS, check_secret


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A checked delivery; `fields` are those of its hash that no script sets."""

    id: str
    fields: Mapping[str, str | bytes | int]
    endpoint: str
    host: str
    order: str
    delay_ms: int


class Composer:
    """Checks the arguments of one webhook and composes its record."""

    def __init__(self, secrets: DeliverySecrets, options: WebhookOptions) -> None:
        self._secrets = secrets
        self._options = options

    def compose(
        self,
        id_: str,
        url: str,
        payload: Any,
        *,
        event_type: str,
        secret: str | None,
        secrets: Sequence[str],
        bearer: str | None,
        headers: Mapping[str, str] | None,
        endpoint_id: str | None,
        ordering_key: str | None,
        deadline: datetime | None,
        on_end: str | None,
        priority: Priority,
        delay_s: float,
    ) -> NewDelivery:
        """
        Check everything and compose the record.

        Raises:
            InvalidWebhookURL, InvalidArgument, NotSerializable, PayloadTooLarge.
        """
        url = arguments.require_webhook_url(url)
        arguments.require_event_type(event_type)
        if endpoint_id is not None:
            arguments.require_id("endpoint_id", endpoint_id)
        delay_ms = arguments.delay_ms(delay_s)
        fields: dict[str, str | bytes | int] = {
            "url": self._secrets.hide_url(url, owner=id_),
            "event_type": event_type,
            "body": arguments.webhook_body(payload, max_bytes=self._options.max_bytes),
            "deadline": self._deadline_ms(deadline, delay_ms),
            "priority": arguments.require_priority(priority).value,
        }
        given = check_headers({} if headers is None else headers)
        fields |= self.sealed(id_, url, signing_secrets(secret, secrets), bearer, given)
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
        endpoint = endpoint_of(url, endpoint_id)
        order = "" if ordering_key is None else order_of(endpoint, ordering_key)
        return NewDelivery(id_, fields, endpoint, host_of(url), order, delay_ms)

    def sealed(
        self,
        owner: str,
        url: str,
        signing: Sequence[str],
        bearer: str | None,
        headers: Mapping[str, str],
    ) -> dict[str, Any]:
        """The fields of a delivery's own secrets; empty without any."""
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

    def _deadline_ms(self, deadline: datetime | None, delay_ms: int) -> int:
        now = now_ms()
        if deadline is None:
            # A delayed delivery has its full time after the delay.
            return now + delay_ms + round(self._options.deadline_s * 1000)
        found = arguments.unix_ms("deadline", deadline)
        if found <= now + delay_ms:
            raise InvalidArgument("the deadline is before the first attempt")
        return found


def signing_secrets(secret: str | None, secrets: Iterable[str]) -> list[str]:
    """Check and collect the signing secrets of one webhook."""
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
