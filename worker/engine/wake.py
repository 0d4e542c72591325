"""
Wakes an idle worker as soon as a job is enqueued.

Our clients push a token, which one waiting worker pops (`BZPOPMIN`). In the same
write, behind that wait, the worker has sent a script that claims the next job
(lua/next_job.lua). The server runs the script as soon as the token is there, so
the job comes with the token; a poll then finds any further jobs. Stock arq's
clients push no token; listen.py detects their jobs. A token that is lost with a
dying worker delays a job by at most `EngineOptions.poll_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.pool import OUTAGE
from cache.logs import get_logger
from worker.engine.poll import Poll, WakePoll
from worker.engine.records import READ_APART, Claim, read_claims
from worker.helpers import keep_running
from worker.keys import EngineKeys

log = get_logger(__name__)

# The server ends a wait after the first; a reply that is later than both is an outage.
_WAIT_S, _REPLY_MARGIN_S = 20, 5.0
RETRY_S = 0.5


class Waker:
    """
    Waits for tokens while the worker is idle.

    With `claims`, a script behind the wait claims a job. `kick` is called when more may be due.
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
        self._connection = MultiplexedConnection(
            client, timeout_s=_WAIT_S + _REPLY_MARGIN_S, blocks=True
        )
        self._key = keys.wake
        self._pop = ("BZPOPMIN", keys.wake, _WAIT_S)
        self._poll = poll
        self._claims = claims
        self._deliver: Callable[[list[Claim]], None] = _to_nobody
        self._kick = kick
        self._reported = {"READONLY", "UNBLOCKED"}  # errors of a failover are expected
        self._idle = asyncio.Event()
        self._is_settled = asyncio.Event()
        self._is_settled.set()

    def deliver_to(self, deliver: Callable[[list[Claim]], None]) -> None:
        """Set the callback that takes the jobs that come with tokens."""
        self._deliver = deliver

    def set_idle(self, idle: bool) -> None:
        """Set whether this worker has a free slot and knows of no due job."""
        if idle:
            self._idle.set()
        else:
            self._idle.clear()

    def hint(self) -> None:
        """Kick an idle worker: there may be a job to claim."""
        if self._idle.is_set():
            self._kick()

    @property
    def is_waiting(self) -> bool:
        """Whether a job may still come behind a token."""
        return not self._is_settled.is_set()

    @property
    def is_connected(self) -> bool:
        return self._connection.is_connected

    async def give_up(self, within_s: float) -> None:
        """
        End the wait: a job already claimed is delivered, and no other is claimed.

        Raises:
            TimeoutError: the server does not answer; the lease of a claimed job will lapse.
        """
        await self._connection.close()
        async with asyncio.timeout(within_s):
            await self._is_settled.wait()

    async def run(self) -> None:
        """Wait for tokens until canceled."""
        try:
            if self._claims:
                with suppress(*OUTAGE):
                    await self._poll.prepare()
            # Started again inside: the connection stays open until the worker ends.
            await keep_running("waker", self._keep_waiting)
        finally:
            await self._connection.close()
            self._is_settled.set()

    async def _keep_waiting(self) -> None:
        while True:
            await self._idle.wait()
            await self._wait()

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
                # The server restarted, so the script did not run; a poll will claim the job.
                await self._poll.prepare()
                reply = []
            for answer in (token, reply):
                if isinstance(answer, Exception):
                    raise answer
            if READ_APART in reply:
                await self._poll.with_bodies(reply)
        except OUTAGE as exc:
            self._report(exc)
            self._hand_over(await self._settled(polled))
            # The poll logs the same outage, so only wait here.
            await asyncio.sleep(RETRY_S)
            self._kick()  # a token may be lost with the connection
            return
        self._hand_over(reply)
        if token and not reply and not self._idle.is_set():
            # This worker is busy now: leave the token to another one.
            await self._put_back()
        elif token or reply:
            self._kick()

    async def _wait_for_token(self) -> None:
        try:
            if await self._connection.execute(*self._pop):
                self._kick()
        except OUTAGE:
            await asyncio.sleep(RETRY_S)

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
                self._report(exc)
                await asyncio.sleep(RETRY_S)

    def _report(self, error: Exception) -> None:
        """Log each kind of refusal once. The poll logs outages."""
        kind = str(error).partition(" ")[0]
        if isinstance(error, ResponseError) and kind not in self._reported:
            self._reported.add(kind)
            log.warning("wake.refused", error=str(error)[:200])

    async def _put_back(self) -> None:
        with suppress(*OUTAGE):
            await self._connection.execute("ZADD", self._key, 0, "w")


def _to_nobody(_claims: list[Claim]) -> None:
    raise RuntimeError("call deliver_to before run")
