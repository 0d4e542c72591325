"""Cancels a coroutine at one of its awaits, as a request that is disconnected is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class CanceledAt:
    """
    Awaits a coroutine, and cancels the task at the await of this number.

    Attributes:
        awaits: how many there were.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int = 0) -> None:
        self._coroutine = coroutine
        self._at = at
        self._task: asyncio.Task[Any] | None = None
        self.awaits = 0

    def cancel_next(self) -> None:
        """Cancel at the next await, if it is this coroutine that runs now."""
        if asyncio.current_task() is self._task:
            self._at = self.awaits + 1

    def __await__(self) -> Generator[Any, Any, Any]:
        self._task = task = asyncio.current_task()
        assert task is not None
        steps = self._coroutine.__await__()
        try:
            waited = next(steps)
            while True:
                self.awaits += 1
                if self.awaits == self._at:
                    asyncio.get_running_loop().call_soon(task.cancel)
                try:
                    answer = yield waited
                except BaseException as exc:  # noqa: BLE001  (thrown into the coroutine)
                    waited = steps.throw(exc)
                else:
                    waited = steps.send(answer)
        except StopIteration as stop:
            return stop.value


async def canceled_at(coroutine: Coroutine[Any, Any, Any], at: int) -> tuple[str, int]:
    """Run it so in a task of its own. Returns how it ended, and how many awaits there were."""
    run = CanceledAt(coroutine, at)

    async def awaited() -> Any:
        return await run

    task = asyncio.ensure_future(awaited())
    await asyncio.wait([task])
    if task.cancelled():
        return "CancelledError", run.awaits
    error = task.exception()
    return ("" if error is None else type(error).__name__), run.awaits
