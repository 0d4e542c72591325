"""Reads how attempts ended: counts, their times and their waits by endpoint and time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.keys import QueueKeys
from worker.queue.series import Counts
from worker.queue.series_reader import SeriesReader, Span, Step, check_window


@dataclass(frozen=True, slots=True)
class EndpointHistory:
    """
    The history of one endpoint's attempts. `spans` leaves out those without counts.

    endpoint: its key, as a delivery and an endpoint have it.
    Of the counts, `completed` are attempts that delivered, `retried` those after which the delivery
    waits for another, `dead` deliveries that ended so, `aborted` those that ended because the
    endpoint is disabled, and `lapsed` attempts whose worker died. `run` is how long an attempt
    took, `wait` how long after it was due it began.
    """

    endpoint: str
    total: Counts
    counts: Counts
    spans: list[Span]


class EndpointHistories:
    """Reads the history of endpoints through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._reader = SeriesReader(client, keys.webhook_history)

    async def read(
        self, endpoint: str | None, since: datetime | None, step: Step | None
    ) -> list[EndpointHistory]:
        check_window(since, step)
        names = sorted(await self._reader.names()) if endpoint is None else [endpoint]
        found = await self._reader.read(names, since, step)
        return [
            EndpointHistory(name, each.total, each.counts, each.spans)
            for name in names
            if (each := found.get(name)) is not None
        ]
