"""Sums the counters of all processes on the server, so that an operator sees the whole cache."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cache.connection.protocol import Away
from cache.connection.tasks import end
from cache.keys import CACHE_COUNTERS_TTL_S
from cache.stats import Counters

# Closing waits this long for the last addition.
_LAST_S = 0.2
# Of the largest number that HINCRBY can make.
_MOST_DIGITS = 19


def counters_of(stored: Mapping[bytes, bytes]) -> dict[str, int]:
    """Read the stored counters. One that is no number counts as none: anybody may have written it."""
    return {
        name.decode(errors="replace"): int(value)
        for name, value in stored.items()
        if value.isdigit() and len(value) <= _MOST_DIGITS
    }


class Totals:
    """
    Adds this process's counters to those on the server, every `every_s` and at the end.

    What was counted while the server was away is added when it is back. An addition whose reply
    is lost may count twice.

    Args:
        connection: has `execute` and `execute_many`, which raise Away.
    """

    def __init__(self, connection: Any, key: str, counters: Counters, *, every_s: float) -> None:
        self._connection = connection
        self._key = key
        self._counters = counters
        self._added = Counters().as_dict()
        self._every_s = every_s
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._stopping.wait()
            with suppress(Away):
                await self.add()

    async def add(self) -> None:
        """Add what was counted since the last call. Raises Away."""
        counted = self._counters.as_dict()
        new = {name: number - self._added[name] for name, number in counted.items()}
        commands: list[tuple[Any, ...]] = [
            ("HINCRBY", self._key, name, number) for name, number in new.items() if number
        ]
        if not commands:
            return
        # Before the call, so that another one meanwhile does not add the same.
        self._added = counted
        try:
            await self._connection.execute_many(
                [*commands, ("EXPIRE", self._key, CACHE_COUNTERS_TTL_S)]
            )
        except Away:
            self._added = {name: self._added[name] - number for name, number in new.items()}
            raise

    async def read(self) -> dict[str, int]:
        """The sums, this process's included. Raises Away."""
        await self.add()
        pairs = await self._connection.execute("HGETALL", self._key)
        found = counters_of(dict(zip(pairs[::2], pairs[1::2], strict=True)))
        return {name: found.get(name, 0) for name in self._added}

    async def stop(self) -> None:
        if self._task is not None:
            self._stopping.set()
            await asyncio.wait({self._task}, timeout=_LAST_S)
            await end(self._task)
