"""Reads how LLM requests ended: counts, their times and their waits by group and time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.keys import QueueKeys
from worker.llm.grouping import full_endpoint
from worker.queue import arguments
from worker.queue.series import Counts
from worker.queue.series_reader import Found, SeriesReader, Span, Step, check_window


@dataclass(frozen=True, slots=True)
class GroupHistory:
    """
    The history of one group's requests. `spans` leaves out those without counts.

    Of the counts, `completed` are requests with an answer, `dead` those that ended with an error,
    `aborted` canceled ones, and `retried` those that a batch gave back, to wait for another. `run`
    goes from the sending of a request, or of its batch, to its answer, `wait` from its submission
    to the sending.
    """

    provider: str
    endpoint: str
    model: str
    total: Counts
    counts: Counts
    spans: list[Span]


class GroupHistories:
    """Reads the history of groups through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._reader = SeriesReader(client, keys.llm_history)

    async def read(
        self,
        *,
        provider: str | None = None,
        endpoint: str | None = None,
        model: str | None = None,
        since: datetime | None = None,
        step: Step | None = None,
    ) -> list[GroupHistory]:
        """
        Return how the requests of each group ended; the filters combine.

        since, step: as of `queue.history`. Models of an endpoint beyond 128 groups share `<other>`;
        a group whose last request ended over a day ago loses its place, and its history, to a new
        one where all places are taken.

        Raises:
            InvalidArgument: no name, a time without a zone, or an unknown step.
        """
        for field, value in (("provider", provider), ("endpoint", endpoint)):
            if value is not None:
                arguments.require_name(field, value)
        if model is not None:
            arguments.require_name("model", model, longest=256)
        check_window(since, step)
        wanted = (provider, None if endpoint is None else full_endpoint(endpoint), model)
        names = [
            name
            for name in await self._names()
            if all(want in (None, part) for want, part in zip(wanted, _parts(name), strict=True))
        ]
        return _histories(names, await self._reader.read(names, since, step))

    async def totals(self) -> list[GroupHistory]:
        """Return the total of each group, without spans: a small read."""
        names = await self._names()
        return _histories(names, await self._reader.totals(names))

    async def _names(self) -> list[str]:
        return sorted(name for name in await self._reader.names() if name.count(":") > 1)


def _parts(name: str) -> tuple[str, str, str]:
    """Provider, endpoint and model: only a model may have a colon."""
    provider, endpoint, model = name.split(":", 2)
    return provider, endpoint, model


def _histories(names: list[str], found: dict[str, Found]) -> list[GroupHistory]:
    return [
        GroupHistory(*_parts(name), each.total, each.counts, each.spans)
        for name in names
        if (each := found.get(name)) is not None
    ]
