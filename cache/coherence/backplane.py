"""
Sends invalidations and wake-ups to every process, over a stream.

A stream, not pub/sub: a listener that lost its connection goes on from its
position, and notices if it missed something (the stream was trimmed or recreated).
A process listens only if it keeps local copies, or once it waits for another
process's loader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from cache.coherence.guarded import GuardedConnection
from cache.connection import scripts
from cache.connection.pool import OUTAGE
from cache.connection.protocol import Away
from cache.connection.refusals import explain
from cache.connection.tasks import end
from cache.keys import CACHE_BACKPLANE_EVENTS, CACHE_MAX_TTL_S
from cache.logs import get_logger

log = get_logger(__name__)

_BLOCK_MS = 1000
_READ_TIMEOUT_S = 3.0
_RETRY_S = 0.1
_START = b"0-0"
# Most names in one event.
_NAMES = 500


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
        self._last = _START
        self.on_invalidated: Callable[[str], None] = lambda _key: None
        self.on_lost: Callable[[], None] = lambda: None

    @property
    def caught_up(self) -> bool:
        """Whether this process has applied every event up to its last read."""
        return self._caught_up.is_set()

    @property
    def position(self) -> bytes:
        """Id of the last event that this process has applied."""
        return self._last

    async def publish(self, *keys: str) -> None:
        """
        Announce invalidated entries to every process. Call it after the invalidation itself.

        Raises:
            Away: not every name was published.
        """
        for start in range(0, len(keys), _NAMES):
            await self._add("i", "\n".join(keys[start : start + _NAMES]))

    def wake(self, name: str) -> None:
        """Wake the waiters of an entry in every process. Does not wait for delivery."""
        self._wake_here(name)
        task = asyncio.ensure_future(self._add_quietly("w", name))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _add(self, kind: str, names: str) -> None:
        args = (CACHE_BACKPLANE_EVENTS, int(CACHE_MAX_TTL_S), kind, names)
        try:
            server = self._connection.unguarded
            await self._publish.run(server, [self._key], args, alone=True)
        except ResponseError as exc:
            raise Away(str(exc)) from None

    async def _add_quietly(self, kind: str, names: str) -> None:
        try:
            await self._add(kind, names)
        except Away:
            return  # waiters look again by themselves after a while

    async def listen(self) -> None:
        """
        Start to follow the stream, and return once this process has caught up.

        Raises:
            Away: not caught up within a read's timeout.
        """
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._follow())
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                await self._caught_up.wait()
        except TimeoutError:
            raise Away(f"the backplane did not answer within {_READ_TIMEOUT_S} s") from None

    @property
    def listening(self) -> bool:
        return self._task is not None and self._caught_up.is_set()

    def expect(self, name: str) -> asyncio.Future[None]:
        """A future for the next wake-up of an entry. Pass it to `forget` in the end."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(name, set()).add(future)
        return future

    def forget(self, name: str, future: asyncio.Future[None]) -> None:
        """Stop waiting for a wake-up."""
        waiters = self._waiters.get(name)
        if waiters is not None:
            waiters.discard(future)
            if not waiters:
                del self._waiters[name]

    def _wake_here(self, name: str) -> None:
        for future in self._waiters.pop(name, ()):
            if not future.done():
                future.set_result(None)

    async def _follow(self) -> None:
        try:
            await self._follow_until_cancelled()
        finally:
            self._caught_up.clear()

    async def _follow_until_cancelled(self) -> None:
        self._last = b""
        while True:
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    await self.catch_up()
                while True:
                    # XREAD returns after its block time even if nothing came: silence is an outage.
                    async with asyncio.timeout(_READ_TIMEOUT_S):
                        reply = await self._client.xread({self._key: self._last}, block=_BLOCK_MS)
                    for _, events in reply or ():
                        self._apply(events)
            except OUTAGE as exc:
                if self._caught_up.is_set():
                    self._caught_up.clear()
                    log.warning("cache.backplane_lost", error=explain(exc))
                await asyncio.sleep(_RETRY_S)

    async def catch_up(self) -> None:
        """Apply the events since the last one, or call `on_lost` if some may be missing."""
        ends = [await self._client.xrange(self._key, count=1)]
        ends.append(await self._client.xrevrange(self._key, count=1))
        first, newest = (end[0][0] if end else _START for end in ends)
        lost = not self._last or _order(first) > _order(self._last) > _order(_START)
        if lost or _order(newest) < _order(self._last):
            if self._last:
                log.warning("cache.backplane_gap")
            self._last = newest
            self.on_lost()
        else:
            reply = await self._client.xrange(self._key, min=self._last)
            self._apply([event for event in reply if event[0] != self._last])
        self._caught_up.set()

    def _apply(self, events: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        for event_id, fields in events:
            self._last = event_id
            for kind, names in (fields or {}).items():
                for name in names.decode().split("\n"):
                    if kind == b"i":
                        self.on_invalidated(name)
                    else:
                        self._wake_here(name)

    async def close(self) -> None:
        await end(*self._publishing, self._task)


def _order(event_id: bytes) -> tuple[int, int]:
    time_ms, _, sequence = event_id.partition(b"-")
    return int(time_ms), int(sequence or 0)
