"""
Grants leases by name: one process of the fleet at a time does something, such as polling.

    async with cache.lease("poll-batches") as lease:
        ...  # canceled if the lease is lost

The holder renews its lease in the background. It counts on it only while the server
certainly keeps it: durations are compared, never the times of two clocks. A holder that
was suspended for longer learns of it late; what it writes then is told apart by the
token, which grows with each holder.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from cache.coherence.clock import boot_clock, certain_s
from cache.coherence.guarded import GuardedConnection
from cache.connection import scripts
from cache.connection.protocol import Away
from cache.connection.tasks import end
from cache.errors import CacheUnavailable, LeaseHeld, LeaseLost
from cache.keys import CACHE_FENCE_TTL_MS, CacheKeys
from cache.logs import get_logger
from cache.names import check_name

log = get_logger(__name__)

_OWNER_BYTES = 8
_RENEWALS_PER_TTL = 3
_LOOKS_PER_TTL = 10
LONGEST_TTL_S = 3600.0


class NamedLease:
    """
    A lease, as a context manager.

    Attributes:
        token: fencing token. Each holder's is greater than those of all before it: let what you
            write to refuse a smaller one than it has seen.
    """

    def __init__(
        self,
        connection: GuardedConnection,
        keys: CacheKeys,
        name: str,
        *,
        ttl_s: float,
        wait_s: float | None,
        now: Callable[[], float] = boot_clock,
    ) -> None:
        check_name("name", name)
        if not 0 < ttl_s <= LONGEST_TTL_S:
            raise ValueError(
                f"ttl_s must be more than 0 and at most {LONGEST_TTL_S:g}, not {ttl_s}"
            )
        self.name = name
        self.token = 0
        self._connection = connection
        self._keys = keys.lease(name), keys.fence(name)
        self._script = scripts.load(__package__, "named_lease")
        self._owner = b""
        self._ttl_s, self._wait_s, self._now = ttl_s, wait_s, now
        self._until = float("-inf")
        self._lost = False
        self._canceling = 0
        self._keeping: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether no other process can have the lease now. Look at it before each step that counts."""
        return self._now() < self._until

    async def __aenter__(self) -> Self:
        """
        Raises:
            LeaseHeld: another process has had it for all of `wait_s`.
            CacheUnavailable: the server cannot be reached.
        """
        self._lost, self._owner = False, os.urandom(_OWNER_BYTES)
        try:
            await self._take()
        except BaseException as exc:
            await asyncio.shield(self._give_back())  # the call may have arrived
            if isinstance(exc, Away):
                raise CacheUnavailable(
                    f"the lease {self.name!r} was not taken", "check LETTA_CACHE_REDIS_URL"
                ) from exc
            raise
        log.info("cache.lease_taken", name=self.name, token=self.token)
        body = asyncio.current_task()
        assert body is not None  # noqa: S101
        self._canceling = body.cancelling()
        self._keeping = asyncio.ensure_future(self._keep(body))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        body, lost = asyncio.current_task(), self._lost or not self.held
        assert body is not None  # noqa: S101
        assert self._keeping is not None  # noqa: S101
        canceled_here = self._lost and body.uncancel() <= self._canceling
        self._keeping.cancel()  # before it can take the end of the block for a loss
        self._until = float("-inf")
        await asyncio.shield(self._leave())
        if lost and (kind is None or (canceled_here and kind is asyncio.CancelledError)):
            raise LeaseLost(self.name) from error

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = float("inf") if self._wait_s is None else loop.time() + self._wait_s
        while not self.held:
            reply = await self._ask("take")
            if reply[0] == 1:
                self.token = int(reply[1])
                continue
            left_s = int(reply[1]) / 1000
            pause_s = min(left_s, self._ttl_s / _LOOKS_PER_TTL * (1 + random.random()))  # noqa: S311
            if loop.time() + pause_s > give_up_at:
                raise LeaseHeld(self.name, left_s)
            await asyncio.sleep(pause_s)

    async def _keep(self, body: asyncio.Task[Any]) -> None:
        """Renew until the lease is lost, then cancel the body."""
        while self.held:
            await asyncio.sleep(min(self._ttl_s / _RENEWALS_PER_TTL, self._until - self._now()))
            with suppress(Away, TimeoutError):
                async with asyncio.timeout(max(self._until - self._now(), 0)):
                    if (await self._ask("renew"))[0] != 1:
                        self._until = float("-inf")
        self._lost = True
        log.warning("cache.lease_lost", name=self.name, token=self.token)
        body.cancel()

    async def _ask(self, mode: str) -> list[Any]:
        asked_at = self._now()
        args = (self._owner, int(self._ttl_s * 1000) or 1, mode, CACHE_FENCE_TTL_MS)
        reply: list[Any] = await self._connection.run(self._script, self._keys, args)
        if reply[0] == 1 and mode != "give_back":
            self._until = asked_at + certain_s(self._ttl_s)
        return reply

    async def _leave(self) -> None:
        await end(self._keeping)
        await self._give_back()

    async def _give_back(self) -> None:
        with suppress(Away):  # then it lapses
            await self._ask("give_back")
