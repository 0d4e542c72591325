"""
Tells the cache what transactions change: before their COMMIT, and when their session ends.

A COMMIT that was canceled or broken may have happened, or may still happen. It
counts as committed: its intent stands a little longer, and what it changed is
invalidated again at AGAIN_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
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

# Seconds after the end of a session whose COMMIT has an unknown outcome.
AGAIN_S = (0.05, 0.3)


@dataclass(frozen=True, slots=True)
class Begun:
    """A COMMIT that is about to be sent, or was."""

    invalidator: Invalidator
    changes: Changes
    token: WriteToken


@dataclass(slots=True)
class Transactions:
    """
    The transactions of one session.

    Args:
        changes: of the one that is open.
        sent: its COMMIT may have been sent.
        unknown: their COMMIT failed.
        managed: whoever opened the session settles it.
    """

    changes: Changes = field(default_factory=Changes)
    sent: Begun | None = None
    committed: list[Begun] = field(default_factory=list)
    unknown: list[Begun] = field(default_factory=list)
    managed: bool = False

    def committed_sent(self) -> None:
        if self.sent is not None:
            self.committed.append(self.sent)
            self.sent = None

    def failed_sent(self) -> None:
        if self.sent is not None:
            self.unknown.append(self.sent)
            self.sent = None


class Home(Protocol):
    """Where the invalidator is open."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Its event loop. None: nothing is open yet."""

    async def opened(self) -> Invalidator | None:
        """The open invalidator, or None: then nothing is delivered. Awaited in `loop`."""


class Deliveries:
    """
    Begins and ends writes, in whichever event loop they happen.

    Args:
        ended: called with what was written, after its end was delivered, in the loop of `home`.
    """

    def __init__(
        self, home: Home, ended: Callable[[Changes], None] = lambda _changes: None
    ) -> None:
        self._home = home
        self._ended = ended
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, transactions: Transactions) -> None:
        """
        Begin the write of the open transaction. One round trip, right before its COMMIT.

        Raises:
            CacheUnavailable: see `Invalidator.begin_write`. The transaction must not commit.
        """
        transactions.failed_sent()
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
        """Await a call in the loop of the invalidator."""
        loop = self._home.loop
        if loop is None or loop is asyncio.get_running_loop():
            return await call()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), loop))

    async def settle(self, transactions: Transactions) -> None:
        """
        End the writes of a session that has ended. Returns when that is delivered.

        A cancellation is raised after the delivery, which takes at most a few timeouts of the
        cache.
        """
        ending = self.settle_soon(transactions)
        if ending is None:
            return
        canceled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError as exc:
                canceled = exc
        if canceled is not None:
            raise canceled

    def settle_soon(self, transactions: Transactions) -> asyncio.Task[None] | None:
        """As `settle`, in a task of its own. None if there is nothing to end."""
        transactions.failed_sent()
        committed, unknown = transactions.committed, transactions.unknown
        if not committed and not unknown:
            return None
        transactions.committed, transactions.unknown = [], []
        return self._start(self._at_home(partial(self._settle, committed, unknown)))

    async def _settle(self, committed: Iterable[Begun], unknown: Iterable[Begun]) -> None:
        for begun in unknown:
            log.warning("letta.commit_unknown", agents=len(begun.changes.agents))
            self._start(self._repeat(begun))
        await asyncio.gather(
            *(self._end(begun) for begun in committed),
            *(self._invalidate(begun) for begun in unknown),
        )

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
        """Return when nothing is under way: await it at home, before the invalidator is closed."""
        loop = asyncio.get_running_loop()
        while tasks := [task for task in self._tasks if task.get_loop() is loop]:
            await asyncio.wait(tasks)


def _valid(changes: Changes) -> Changes:
    """Without names that the cache refuses: it holds no value under them."""
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
