"""
Sends invalidations and wake-ups to every process, over a stream.

A stream, not pub/sub: a listener that lost its connection goes on from its
position, and notices if it missed something (the stream was trimmed or recreated).
A process listens only if it keeps local copies, or once it waits for another
process's loader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from redis.exceptions import ResponseError

from cache.coherence.guarded import GuardedConnection
from cache.connection import scripts
from cache.connection.pool import OUTAGE
from cache.connection.protocol import Away
from cache.connection.refusals import explain
from cache.connection.tasks import end, keep
from cache.keys import CACHE_BACKPLANE_EVENTS, CACHE_MAX_TTL_S
from cache.logs import get_logger

log = get_logger(__name__)

_BLOCK_MS = 1000
_READ_TIMEOUT_S = 3.0
_RETRY_S = 0.1
_START = b"0-0"
# Most names in one event.
_NAMES = 500
ALL = "*"


class Backplane:
    """Publishes events, and follows the stream after `listen`."""

    def __init__(self, client: Any, connection: GuardedConnection, key: str) -> None:
        self._client = client
        self._connection = connection
        self._key = key
        self._task: asyncio.Task[None] | None = None
        self._caught_up = asyncio.Event()
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._publishing: set[asyncio.Task[None]] = set()
        self._publish = scripts.load(__package__, "publish")
        self.position = _START  # id of the last event that this process has applied
        # Drops this process's copies and flights of a key, or of ALL.
        self.forget_here: Callable[[str], None] = lambda _key: None

    @property
    def caught_up(self) -> bool:
        """Whether this process has applied every event up to its last read."""
        return self._caught_up.is_set()

    async def publish(self, *keys: str) -> None:
        """Announce to every process what has been invalidated. Raises Away."""
        for start in range(0, len(keys), _NAMES):
            await self._add("i", "\n".join(keys[start : start + _NAMES]))

    def wake(self, name: str) -> None:
        """Wake the waiters of an entry in every process. Does not wait for delivery."""
        self._wake_here(name)
        keep(self._publishing, self._wake_others(name))

    async def _add(self, kind: str, names: str) -> None:
        args = (CACHE_BACKPLANE_EVENTS, int(CACHE_MAX_TTL_S), kind, names)
        try:
            server = self._connection.unguarded
            await self._publish.run(server, [self._key], args, alone=True)
        except ResponseError as exc:
            raise Away(str(exc)) from None

    async def _wake_others(self, name: str) -> None:
        with suppress(Away):  # waiters look again by themselves after a while
            await self._add("w", name)

    async def listen(self) -> None:
        """Follow the stream. Returns once this process has caught up; raises Away at a timeout."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._follow())
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                await self._caught_up.wait()
        except TimeoutError:
            raise Away(f"the backplane did not answer within {_READ_TIMEOUT_S} s") from None

    @contextmanager
    def expect(self, name: str) -> Iterator[asyncio.Future[None] | None]:
        """A future for the next wake-up of an entry; None while this process does not listen."""
        if not self.caught_up:
            yield None
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(name, set()).add(future)
        try:
            yield future
        finally:
            waiters = self._waiters.get(name, set())
            waiters.discard(future)
            if not waiters:
                self._waiters.pop(name, None)

    def _wake_here(self, name: str) -> None:
        for future in self._waiters.pop(name, ()):
            if not future.done():
                future.set_result(None)

    async def _follow(self) -> None:
        self.position = b""
        while True:
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    await self.catch_up()
                while True:
                    # XREAD returns after its block time even if nothing came: silence is an outage.
                    async with asyncio.timeout(_READ_TIMEOUT_S):
                        reply = await self._client.xread(
                            {self._key: self.position}, block=_BLOCK_MS
                        )
                    for _, events in reply or ():
                        self._apply(events)
            except OUTAGE as exc:
                if self._caught_up.is_set():
                    log.warning("cache.backplane_lost", error=explain(exc))
            finally:
                self._caught_up.clear()
            await asyncio.sleep(_RETRY_S)

    async def catch_up(self) -> None:
        """Apply the events since the last one, or forget ALL if some may be missing."""
        ends = [await self._client.xrange(self._key, count=1)]
        ends.append(await self._client.xrevrange(self._key, count=1))
        first, newest = (end[0][0] if end else _START for end in ends)
        lost = not self.position or _order(first) > _order(self.position) > _order(_START)
        if lost or _order(newest) < _order(self.position):
            if self.position:
                log.warning("cache.backplane_gap")
            self.position = newest
            self.forget_here(ALL)
        else:
            reply = await self._client.xrange(self._key, min=self.position)
            self._apply([event for event in reply if event[0] != self.position])
        self._caught_up.set()

    def _apply(self, events: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        for event_id, fields in events:
            self.position = event_id
            for kind, names in (fields or {}).items():
                # Whoever can write to the server may add anything; no key of ours has such a name.
                for name in names.decode(errors="replace").split("\n"):
                    if kind == b"i":
                        self.forget_here(name)
                    else:
                        self._wake_here(name)

    async def close(self) -> None:
        await end(*self._publishing, self._task)


def _order(event_id: bytes) -> tuple[int, int]:
    time_ms, _, sequence = event_id.partition(b"-")
    return int(time_ms), int(sequence or 0)
