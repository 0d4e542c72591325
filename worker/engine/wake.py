"""
Waking an idle worker without polling.

Our clients push a token that one waiting worker pops (`BZPOPMIN`). Behind that
wait, in the same write, the worker has sent a script that claims the next job
(lua/next_job.lua): the server runs it as soon as the token is there, so the job
comes with the token, and another turn of the pump finds what else there is.
Stock arq's clients push none; listen.py hears of their jobs. A token that was
lost with a dying worker costs at most `EngineOptions.poll_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from redis.exceptions import NoScriptError, ResponseError

from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.pool import OUTAGE
from worker.engine.poll import Poll, WakePoll
from worker.engine.records import Claim, EngineKeys, read_claims

log = structlog.get_logger(__name__)

# A wait has a connection and a limit of its own: few commands when idle.
_WAIT_S, _LATE_S = 20, 5.0
_RETRY_S = 0.5


class Waker:
    """
    Waits for tokens while the worker has nothing to do.

    With `claims` a turn behind the wait claims a job. `kick` is called when there may be more.
    """

    def __init__(
        self,
        client: Any,
        keys: EngineKeys,
        poll: Poll,
        *,
        claims: bool,
        kick: Callable[[], None],
    ) -> None:
        self._connection = MultiplexedConnection(client, timeout_s=_WAIT_S + _LATE_S)
        self._key = keys.wake
        self._pop = ("BZPOPMIN", keys.wake, _WAIT_S)
        self._poll = poll
        self._claims = claims
        self._deliver: Callable[[list[Claim]], None] = _to_nobody
        self._kick = kick
        self._told = {"READONLY", "UNBLOCKED"}
        self._idle = asyncio.Event()
        self._is_settled = asyncio.Event()
        self._is_settled.set()

    def deliver_to(self, deliver: Callable[[list[Claim]], None]) -> None:
        """Who takes the jobs that come with tokens."""
        self._deliver = deliver

    def set_idle(self, idle: bool) -> None:
        """Whether this worker could take a job and knows of none that is due."""
        if idle:
            self._idle.set()
        else:
            self._idle.clear()

    def hint(self) -> None:
        """There may be something to take; of interest only to an idle worker."""
        if self._idle.is_set():
            self._kick()

    @property
    def is_waiting(self) -> bool:
        """Whether a job may still come behind a token."""
        return not self._is_settled.is_set()

    async def give_up(self, within_s: float) -> None:
        """
        End the wait: what it has claimed already is delivered, and it claims nothing more.

        Raises:
            TimeoutError: the server does not answer; a lease gives to others what was claimed.
        """
        await self._connection.close()
        async with asyncio.timeout(within_s):
            await self._is_settled.wait()

    async def run(self) -> None:
        """Wait until cancelled."""
        try:
            if self._claims:
                with suppress(*OUTAGE):
                    await self._poll.prepare()
            while True:
                await self._idle.wait()
                await self._wait()
        finally:
            await self._connection.close()
            self._is_settled.set()

    async def _wait(self) -> None:
        """Wait for one token, and for the job behind it."""
        if not self._claims:
            await self._wait_for_token()
            return
        polled = self._poll.wake_poll()
        self._is_settled.clear()
        try:
            token, reply = await self._connection.execute_many((self._pop, polled.command))
            if isinstance(reply, NoScriptError):
                # A new server. It did nothing, and the pump looks at once.
                await self._poll.prepare()
                reply = []
            for answer in (token, reply):
                if isinstance(answer, Exception):
                    raise answer
        except OUTAGE as exc:
            self._tell(exc)
            self._hand_over(await self._settled(polled))
            # The pump finds out by itself and tells; here only the pace matters.
            await asyncio.sleep(_RETRY_S)
            self._kick()  # a token may be gone with the connection
            return
        self._hand_over(reply)
        if token and not reply and not self._idle.is_set():
            # Busy by now: the token is for another worker.
            await self._put_back()
        elif token or reply:
            self._kick()

    async def _wait_for_token(self) -> None:
        try:
            if await self._connection.execute(*self._pop):
                self._kick()
        except OUTAGE:
            await asyncio.sleep(_RETRY_S)

    def _hand_over(self, rows: list[Any]) -> None:
        claims = read_claims(rows)
        self._poll.granted(claims)
        if claims:
            self._deliver(claims)
        self._is_settled.set()

    async def _settled(self, polled: WakePoll) -> list[Any]:
        while True:
            try:
                return await self._poll.settle(polled)
            except OUTAGE as exc:
                self._tell(exc)
                await asyncio.sleep(_RETRY_S)

    def _tell(self, error: Exception) -> None:
        """Of a refusal, once a kind. Of an outage the pump tells, a failover is none of ours."""
        kind = str(error).partition(" ")[0]
        if isinstance(error, ResponseError) and kind not in self._told:
            self._told.add(kind)
            log.warning("wake.refused", error=str(error)[:200])

    async def _put_back(self) -> None:
        with suppress(*OUTAGE):
            await self._connection.execute("ZADD", self._key, 0, "w")


def _to_nobody(_claims: list[Claim]) -> None:
    raise RuntimeError("deliver_to comes first")
