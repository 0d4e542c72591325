"""Selects deliveries by state, time, event type, URL and endpoint id."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from worker.errors import InvalidArgument
from worker.queue import arguments
from worker.webhooks.policy import DeliveryState


@dataclass(frozen=True, slots=True)
class Selection:
    """
    Selects deliveries that match all given fields. `until` is exclusive.

    `since` and `until` are about the end of a delivery; of an open one, about its creation.
    """

    states: tuple[DeliveryState, ...] = (DeliveryState.DEAD, DeliveryState.DISABLED)
    since: datetime | None = None
    until: datetime | None = None
    event_type: str | None = None
    url: str | None = None
    endpoint_id: str | None = None


def checked(wanted: Selection | None) -> Selection:
    """
    Return the selection with its URL as it is stored.

    Raises:
        InvalidArgument, InvalidWebhookURL: a field has no valid value.
    """
    found = wanted or Selection()
    for what, name in (("event_type", found.event_type), ("endpoint_id", found.endpoint_id)):
        if name is not None:
            arguments.require_name(what, name)
    for state in found.states:
        if not isinstance(state, DeliveryState):
            raise InvalidArgument(f"states: {state!r} is not a DeliveryState")
    for what, moment in (("since", found.since), ("until", found.until)):
        if moment is not None:
            arguments.unix_ms(what, moment)
    url = None if found.url is None else arguments.require_webhook_url(found.url)
    return Selection(
        found.states, found.since, found.until, found.event_type, url, found.endpoint_id
    )
