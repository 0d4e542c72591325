"""
Holds this process's membership lease, on which the others' trust in the cache depends.

While it is renewed, what others read counts. When an invalidation cannot be
delivered it is renewed no more; once it has lapsed the server itself ends the
era (era.lua), so that no process is served what was stored before. A process
that is killed, or cut off from a server that others still reach, is thereby
heard as well. A thread of its own renews, so that a blocked event loop does
not cost everyone their values.

Only rates of clocks are compared, never their times: a lease counts from a time
of the server's that this process was told, or can reckon from one.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

from redis.exceptions import ResponseError

from cache.coherence.era import heard, script_args
from cache.connection import scripts
from cache.connection.pool import OUTAGE
from cache.connection.protocol import Connection
from cache.keys import CacheKeys
from cache.logs import get_logger

log = get_logger(__name__)

_SCRIPT = scripts.load(__package__, "era")
# Clocks may differ by this share in their rates, and by this much in their granularity.
_DRIFT, _GRAIN_S = 0.02, 0.02
_RENEWALS_PER_LEASE = 5
# A renewal may take this long to arrive, and is worth less if it takes longer.
_LATE_S = 0.1
# A server that has not answered for this long is asked again.
_RENEWAL_TIMEOUT_S = 1.0
_JOIN_S = 5.0


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True, slots=True)
class Silence:
    """
    Result of stopping renewal. If `covers`, no process serves anything older than the call
    from `until` on. Otherwise this process was no member when it stopped.
    """

    covers: bool
    until: float


class Membership:
    """
    One process's lease. `hold` and `go_on` are for the loop, the rest runs in the thread.

    Args:
        dial: opens a connection in the loop that it is called from: the thread's own.
        learn: called with the era of every reply.
        lease_s: 0 means never a member.
        now: seconds, of any origin; also for whoever waits for `Silence.until`.
    """

    def __init__(
        self,
        dial: Callable[[], AbstractAsyncContextManager[Connection]],
        keys: CacheKeys,
        *,
        lease_s: float,
        learn: Callable[[bytes], None],
        now: Callable[[], float] = boot_clock,
    ) -> None:
        self.now = now
        self._dial = dial
        self._keys = [keys.members, keys.era]
        self._lease_s = lease_s
        self._learn = learn
        self._lock = threading.Lock()
        self._held = self._stopping = self._leaving = False
        self._refused = False  # logged once
        self._member = ""
        self._basis_ms = 0  # the server's time that was heard last,
        self._heard_at = 0.0  # at this of our clock
        self._sure_until = self._over_at = float("-inf")
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._awake: asyncio.Event | None = None
        self._joined = asyncio.Event()
        self._home: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        if self._lease_s and self._thread is None:
            self._home = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._main, name="cache-member", daemon=True)
            self._thread.start()

    async def joined(self) -> None:
        """Returns once it was a member for the first time; at once without a lease."""
        if self._thread is not None:
            await self._joined.wait()

    def hold(self) -> Silence:
        """Renew no more, until `go_on`. Whatever was sent already is reckoned with."""
        with self._lock:
            self._held = True
            return Silence(self.now() < self._sure_until, self._over_at)

    def go_on(self) -> None:
        """Every invalidation has arrived."""
        with self._lock:
            self._held = False
        self._wake()

    async def stop(self, *, leave: bool) -> None:
        """End the thread. Without `leave`, the lease lapses and others take note."""
        self._leaving, self._stopping = leave, True
        self._wake()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _JOIN_S)

    def _wake(self) -> None:
        _set(self._loop, self._awake)

    def _main(self) -> None:
        try:
            asyncio.run(self._keep())
        except Exception:
            log.exception("cache.renewal_failed")
        finally:
            _set(self._home, self._joined)  # nobody need wait for it any longer

    async def _keep(self) -> None:
        self._awake, self._loop = asyncio.Event(), asyncio.get_running_loop()
        async with self._dial() as connection:
            while not self._stopping:
                self._awake.clear()
                await self._quietly(self._renew_or_join(connection))
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease_s / _RENEWALS_PER_LEASE):
                        await self._awake.wait()
            if self._leaving and self._member:
                await self._quietly(self._ask(connection, "leave"))

    async def _quietly(self, renewal: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(
                min(self._lease_s / _RENEWALS_PER_LEASE, _RENEWAL_TIMEOUT_S)
            ):
                await renewal
        except ResponseError as exc:
            if not self._refused:
                self._refused = True
                log.warning("cache.renewal_refused", error=str(exc)[:200])
        except OUTAGE:
            return  # the commands' connection reports it; the lease outlives a few failures
        except Exception:
            log.exception("cache.renewal_failed")

    async def _renew_or_join(self, connection: Connection) -> None:
        await connection.connect()
        if self._member and not await self._renew(connection):
            with self._lock:
                self._sure_until = float("-inf")
            self._member = ""
        if not self._member:
            await self._join(connection)

    async def _renew(self, connection: Connection) -> bool:
        """False when the lease has lapsed."""
        with self._lock:
            if self._held or self._stopping:
                return True
            on_its_way_s = self.now() - self._heard_at + _LATE_S
            latest_ms = self._basis_ms + int(on_its_way_s * 1000)
            # From here on it must be reckoned with, whether it arrives or not.
            ends_at = self._heard_at + (on_its_way_s + self._lease_s) * (1 + _DRIFT) + _GRAIN_S
            self._over_at = max(self._over_at, ends_at)
        return await self._ask(connection, "renew", latest_ms)

    async def _join(self, connection: Connection) -> None:
        with self._lock:
            if self._held or self._stopping:
                return
        # A new name each time: a copy of this command that arrives late is a stranger's.
        self._member = os.urandom(8).hex()
        try:
            await self._ask(connection, "join")
        except BaseException:
            self._member = ""
            raise
        _set(self._home, self._joined)

    async def _ask(self, connection: Connection, mode: str, latest_ms: int = 0) -> bool:
        asked_at = self.now()
        lease_ms = int(self._lease_s * 1000)
        args = script_args(
            mode, connection, self._keys[1], member=self._member, lease_ms=lease_ms,
            latest_ms=latest_ms,
        )  # fmt: skip
        reply = await _SCRIPT.run(connection, self._keys, args)
        with self._lock:
            self._basis_ms, self._heard_at = reply[1], self.now()
            left_s = (reply[4] - reply[1]) / 1000
            self._sure_until = asked_at + left_s * (1 - _DRIFT) - _GRAIN_S
            ends_at = self._heard_at + left_s * (1 + _DRIFT) + _GRAIN_S
            self._over_at = max(self._over_at, ends_at)
        self._learn(heard(reply))
        return bool(reply[0])


def _set(loop: asyncio.AbstractEventLoop | None, event: asyncio.Event | None) -> None:
    """Set an event of another thread's loop, unless that has ended."""
    if loop is not None and event is not None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(event.set)
