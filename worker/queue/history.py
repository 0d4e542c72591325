"""Reads how jobs ended: counts, run times and wait times by function, priority and time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.keys import QueueKeys
from worker.queue.arguments import require_name, require_priority
from worker.queue.priority import Priority
from worker.queue.series import Counts
from worker.queue.series_reader import Found, SeriesReader, Span, Step, check_window

__all__ = ["FunctionHistory", "History", "Span", "Step"]


@dataclass(frozen=True, slots=True)
class FunctionHistory:
    """
    The history of one function at one priority. `spans` leaves out those without counts.

    `counts` is the sum of the spans. `total` goes back to the first end that followed 30 days
    without one.
    """

    function: str
    priority: Priority
    total: Counts
    counts: Counts
    spans: list[Span]


class History:
    """Reads the history of jobs through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._reader = SeriesReader(client, keys.history)

    async def read(
        self,
        *,
        function: str | None = None,
        priority: Priority | None = None,
        since: datetime | None = None,
        step: Step | None = None,
    ) -> list[FunctionHistory]:
        """
        Return the history of each function at each priority, by their names.

        since: by default an hour ago. step: by default minutes for the last 24 hours, and
        hours for more, up to 30 days. Functions beyond the first 128 pairs of function and
        priority share `<other>`; jobs whose function no worker knows are in `<unknown>`.

        Raises:
            InvalidArgument: no name, no priority, a time without a zone, or an unknown step.
        """
        if function is not None:
            require_name("function", function)
        only = None if priority is None else require_priority(priority)
        check_window(since, step)
        wanted = [
            each
            for each in await self._pairs()
            if only in (None, each[1]) and function in (None, each[0])
        ]
        names = [f"{level.value}:{name}" for name, level in wanted]
        return _histories(wanted, await self._reader.read(names, since, step))

    async def totals(self) -> list[FunctionHistory]:
        """Return the total of each function at each priority, without spans: a small read."""
        wanted = await self._pairs()
        names = [f"{level.value}:{name}" for name, level in wanted]
        return _histories(wanted, await self._reader.totals(names))

    async def _pairs(self) -> list[tuple[str, Priority]]:
        found = [name.partition(":") for name in await self._reader.names()]
        levels = list(Priority)
        pairs = [(name, Priority(first)) for first, _, name in found if first in levels]
        return sorted(pairs, key=lambda pair: (pair[0], levels.index(pair[1])))


def _histories(
    wanted: list[tuple[str, Priority]], found: dict[str, Found]
) -> list[FunctionHistory]:
    return [
        FunctionHistory(name, level, each.total, each.counts, each.spans)
        for name, level in wanted
        if (each := found.get(f"{level.value}:{name}")) is not None
    ]
