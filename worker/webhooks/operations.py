"""Shows, enables and disables the endpoints of webhooks: the operator's part of the client."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime

from worker.errors import InvalidArgument
from worker.queue import arguments
from worker.queue.job import reach
from worker.queue.series_reader import Step
from worker.webhooks.endpoints import Endpoint, EndpointStore, Host, WebhookEvent
from worker.webhooks.history import EndpointHistories, EndpointHistory
from worker.webhooks.limits import endpoint_of, host_of

_EVENT_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")


class EndpointOperations:
    """Names an endpoint by its URL or by an `endpoint_id`."""

    def __init__(self, endpoints: EndpointStore) -> None:
        self._endpoints = endpoints
        self._history = EndpointHistories(endpoints.client, endpoints.keys)

    async def endpoint(self, url: str = "", *, endpoint_id: str | None = None) -> Endpoint:
        """What holds an endpoint back: attempts under way, failures in a row, breaker, pause."""
        key, name = _named(url, endpoint_id)
        (found,) = await reach(self._endpoints.read([key]))
        return replace(found, name=name)

    async def history(
        self,
        url: str | None = None,
        *,
        endpoint_id: str | None = None,
        since: datetime | None = None,
        step: Step | None = None,
    ) -> list[EndpointHistory]:
        """
        Return how the attempts at an endpoint ended, or those at each endpoint; none without any.

        since, step: as of `queue.history`. Endpoints beyond 128 share `<other>`; one of the 128
        without an attempt for an hour loses its place, and its history, to a new one.

        Raises:
            InvalidArgument: no such endpoint, a time without a zone, or an unknown step.
        """
        key = None
        if url is not None or endpoint_id is not None:
            key, _ = _named("" if url is None else url, endpoint_id)
        return await self._history.read(key, since, step)

    async def host(self, url: str) -> Host:
        """How many attempts are under way at a URL's host, and how many endpoints wait for it."""
        name = host_of(arguments.require_webhook_url(url))
        return await reach(self._endpoints.host(name))

    async def disabled_endpoints(self) -> list[Endpoint]:
        """Disabled endpoints, the longest disabled first; at most 1,000."""
        return await reach(self._endpoints.disabled())

    async def failing_endpoints(self) -> list[Endpoint]:
        """Endpoints that fail and are not disabled, the latest failure first; at most 1,000."""
        return await reach(self._endpoints.failing())

    async def events(self, *, after: str = "0", limit: int = 100) -> list[WebhookEvent]:
        """
        Events of endpoints, oldest first; about the newest 1,000 are kept.

        Pass the last event's `id` as `after` to continue from there.
        """
        if not isinstance(after, str) or not _EVENT_ID.fullmatch(after):
            raise InvalidArgument("after must be the id of an event, or 0")
        return await reach(self._endpoints.events(after, limit))

    async def enable(self, url: str = "", *, endpoint_id: str | None = None) -> bool:
        """
        Allow deliveries to an endpoint again; returns False when it was not disabled.

        Its ended deliveries can be sent with `replay_many`.
        """
        endpoint, name = _named(url, endpoint_id)
        return await reach(self._endpoints.switch(endpoint, on=True, name=name))

    async def disable(self, url: str = "", *, endpoint_id: str | None = None) -> bool:
        """
        Stop deliveries to an endpoint; returns False when it was disabled already.

        Its deliveries end as `disabled` and can be replayed later.
        """
        endpoint, name = _named(url, endpoint_id)
        return await reach(self._endpoints.switch(endpoint, on=False, name=name))


def _named(url: str, endpoint_id: str | None) -> tuple[str, str]:
    """An endpoint's key, and its name to show."""
    if endpoint_id is None:
        url = arguments.require_webhook_url(url)
    else:
        arguments.require_id("endpoint_id", endpoint_id)
    return endpoint_of(url, endpoint_id), endpoint_id or url
