"""Reads of webhooks and their endpoints for the API and the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from worker.errors import InvalidArgument, NotFound
from worker.web.api import queries, views
from worker.web.api.queries import given
from worker.web.site import Site
from worker.webhooks.endpoints import Endpoint
from worker.webhooks.history import EndpointHistory
from worker.webhooks.policy import ENDED, DeliveryState
from worker.webhooks.records import Delivery
from worker.webhooks.selection import Selection


async def endpoints(site: Site, _query: queries.Nothing) -> views.EndpointsView:
    """The endpoints of webhooks that fail or are disabled."""
    return views.EndpointsView(
        await site.queue.webhooks.failing_endpoints(),
        await site.queue.webhooks.disabled_endpoints(),
    )


async def endpoint(site: Site, query: queries.ByEndpoint) -> Endpoint:
    """What holds one endpoint back."""
    with known_endpoint():
        return await site.queue.webhooks.endpoint(**named(query))


async def endpoint_history(
    site: Site, query: queries.EndpointHistoryQuery
) -> list[EndpointHistory]:
    """How attempts at webhooks ended, by endpoint and time."""
    name = given(query.name)
    with known_endpoint():
        return await site.queue.webhooks.history(
            **named(queries.ByEndpoint(name)) if name else {},
            since=given(query.since),
            step=given(query.step),
        )


def named(query: queries.ByEndpoint) -> dict[str, str]:
    """The facade's arguments for an endpoint: an `endpoint_id` has no slash."""
    return {"url": query.name} if "/" in query.name else {"endpoint_id": query.name}


@contextmanager
def known_endpoint() -> Iterator[None]:
    """
    Raises:
        NotFound: no webhook can be sent to an endpoint of this name.
    """
    try:
        yield
    except InvalidArgument as exc:
        raise NotFound(f"no such endpoint: {exc}") from None


async def deliveries(site: Site, query: queries.DeliveriesQuery) -> list[views.DeliveryView]:
    """Deliveries of webhooks by state: by default those that have not ended."""
    state = given(query.state)
    wanted = Selection(
        states=(state,) if state else tuple(set(DeliveryState) - set(ENDED)),
        event_type=given(query.event_type),
        since=given(query.since),
        until=given(query.until),
    )
    found = []
    for id_ in await site.queue.webhooks.find(wanted, limit=query.limit):
        try:
            found.append(_delivery_view(await site.queue.delivery(id_)))
        except NotFound:  # its retention has just passed
            continue
    return found


async def delivery(site: Site, query: queries.ById) -> views.DeliveryView:
    """One webhook with its attempts."""
    return _delivery_view(await site.queue.delivery(query.id))


def _delivery_view(found: Delivery) -> views.DeliveryView:
    return msgspec.convert(found.to_dict(), views.DeliveryView)
