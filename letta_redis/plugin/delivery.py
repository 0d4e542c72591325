"""
Announces what a transaction changes to the cache: before its COMMIT, and right after it.

A task delivers the end of a write. It starts at the COMMIT and goes on while the
session closes; the end of a session waits for the tasks of its writes. A COMMIT that was
canceled or interrupted may have happened, or may still happen. It counts as committed:
its intent stands a little longer, and its changes are invalidated again at AGAIN_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from cache.coherence.intents import WriteToken
from cache.errors import InvalidName
from cache.invalidator import Invalidator
from cache.logs import get_logger
from cache.names import check_agent_id, check_name
from letta_redis.plugin.changes import Changes

log = get_logger("letta_redis")

T = TypeVar("T")

# Seconds after a COMMIT of unknown outcome.
AGAIN_S = (0.05, 0.3)


@dataclass(frozen=True, slots=True)
class Begun:
    """A write whose COMMIT is about to be sent, or was sent."""

    invalidator: Invalidator
    changes: Changes
    token: WriteToken


@dataclass(slots=True)
class Transactions:
    """
    The transactions of one session.

    Args:
        changes: of the open transaction.
        sent: the write whose COMMIT may have been sent.
        ending: tasks that deliver the ends of earlier writes.
    """

    changes: Changes = field(default_factory=Changes)
    sent: Begun | None = None
    ending: set[asyncio.Task[None]] = field(default_factory=set)


class Home(Protocol):
    """Gives access to the invalidator and to its event loop."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The invalidator's event loop; None while it is not open."""

    async def opened(self) -> Invalidator | None:
        """The open invalidator. None: deliver nothing. Await this in `loop`."""


class Deliveries:
    """
    Begins and ends writes, from any event loop.

    Args:
        ended: called in the loop of `home` with the changes of a write, after its end is delivered.
    """

    def __init__(
        self, home: Home, ended: Callable[[Changes], None] = lambda _changes: None
    ) -> None:
        self._home = home
        self._ended = ended
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, transactions: Transactions) -> None:
        """
        Begin the write of the open transaction, right before its COMMIT. Takes one round trip.

        Raises:
            CacheUnavailable: as `Invalidator.begin_write`. The transaction must not commit.
        """
        self.failed(transactions)
        changes, transactions.changes = _valid(transactions.changes), Changes()
        if changes:
            transactions.sent = await self._at_home(partial(self._begin, changes))

    async def _begin(self, changes: Changes) -> Begun | None:
        invalidator = await self._home.opened()
        if invalidator is None:
            return None
        token = await invalidator.begin_write(**changes.names())
        return Begun(invalidator, changes, token)

    async def _at_home(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await a call in the invalidator's event loop."""
        loop = self._home.loop
        if loop is None or loop is asyncio.get_running_loop():
            return await call()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), loop))

    def committed(self, transactions: Transactions) -> None:
        """Deliver the end of the sent write, in a task."""
        self._deliver(self._end, transactions)

    def failed(self, transactions: Transactions) -> None:
        """As `committed`, for a COMMIT of unknown outcome."""
        self._deliver(self._end_unknown, transactions)

    def _deliver(
        self, end: Callable[[Begun], Coroutine[Any, Any, None]], transactions: Transactions
    ) -> None:
        begun, transactions.sent = transactions.sent, None
        if begun is not None:
            task = self._start(self._at_home(partial(end, begun)))
            transactions.ending.add(task)
            task.add_done_callback(transactions.ending.discard)

    async def settle(self, transactions: Transactions) -> None:
        """
        Return when the ends of an ended session's writes are delivered.

        A cancellation is raised after the delivery, which takes at most a few timeouts of the
        cache.
        """
        self.failed(transactions)
        canceled: asyncio.CancelledError | None = None
        while transactions.ending:
            try:
                await asyncio.wait(set(transactions.ending))
            except asyncio.CancelledError as exc:
                canceled = exc
        if canceled is not None:
            raise canceled

    async def _end_unknown(self, begun: Begun) -> None:
        log.warning("letta.commit_unknown", agents=len(begun.changes.agents))
        self._start(self._repeat(begun))
        await self._invalidate(begun)

    async def _repeat(self, begun: Begun) -> None:
        waited = 0.0
        for at in AGAIN_S:
            await asyncio.sleep(at - waited)
            waited = at
            await self._invalidate(begun)
        await self._end(begun)

    async def _end(self, begun: Begun) -> None:
        await begun.invalidator.end_write(begun.token)
        self._ended(begun.changes)

    async def _invalidate(self, begun: Begun) -> None:
        await begun.invalidator.invalidate(**begun.changes.names())

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("letta.invalidation_failed", error=repr(task.exception()))

    async def delivered(self) -> None:
        """Return when every end is delivered. Await this in `loop`, before the invalidator closes."""
        loop = asyncio.get_running_loop()
        while tasks := [task for task in self._tasks if task.get_loop() is loop]:
            await asyncio.wait(tasks)


def _valid(changes: Changes) -> Changes:
    """The changes without names that the cache refuses: it holds no value under those."""
    return Changes(
        set(filter(partial(_passes, check_agent_id), changes.agents)),
        set(filter(partial(_passes, _check), changes.dependencies)),
        set(filter(partial(_passes, _check), changes.organisations)),
    )


_check = partial(check_name, "")


def _passes(check: Callable[[str], None], name: str) -> bool:
    try:
        check(name)
    except InvalidName:
        return False
    return True
