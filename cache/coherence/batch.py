"""
Calls one loader for the many values that a call misses.

Each value has its own flight, so leases, refused fills and joined callers work as for a
single value. Flights that have to load wait here until every other value of the call is
decided: found, or being loaded by another flight or process. Then the loader runs once,
with the ids of all waiting flights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LoaderOfMany = Callable[[list[str]], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True, eq=False)
class _Round:
    """One run of the loader. It is canceled when no caller waits for it."""

    task: asyncio.Task[Mapping[str, Any]] = field(init=False)
    ids: list[str] = field(default_factory=list)
    waiters: int = 0


class LoadBatch:
    """
    The loads of one call.

    Args:
        ids: of all values of the call. Call `decided` for each that needs no load.

    Attributes:
        absent: ids that the loader did not return.
    """

    def __init__(self, loader: LoaderOfMany, ids: Iterable[str]) -> None:
        self.absent: set[str] = set()
        self._loader = loader
        self._undecided = set(ids)
        self._complete = asyncio.Event()
        self._next: _Round | None = None

    def decided(self, id_: str) -> None:
        """Report that a value needs no load now. If it needs one later, it is loaded alone."""
        self._undecided.discard(id_)
        if not self._undecided:
            self._complete.set()

    async def load(self, id_: str) -> Any:
        """The loader's value; None for an id that it did not return, which is then `absent`."""
        current = self._next
        if current is None:
            current = self._next = _Round()
            current.task = asyncio.ensure_future(self._run(current))
        current.ids.append(id_)
        current.waiters += 1
        self.decided(id_)
        try:
            found = await asyncio.shield(current.task)
        finally:
            current.waiters -= 1
            if not current.waiters and not current.task.done():
                current.task.cancel()
                self._begun(current)
        if id_ in found:
            return found[id_]
        self.absent.add(id_)
        return None

    async def _run(self, current: _Round) -> Mapping[str, Any]:
        await self._complete.wait()
        self._begun(current)
        found = await self._loader(current.ids)
        if not isinstance(found, Mapping):
            raise TypeError(
                f"a loader of many must return a mapping of id to value, not {type(found).__name__}"
            )
        return found

    def _begun(self, current: _Round) -> None:
        """Close the round: later flights start another one."""
        if self._next is current:
            self._next = None
