"""
The pump: one script call ends the jobs that are over and claims what is due.

A call that fails on the way is sent again with the same token until it is
answered, and the script recognizes it: nothing is claimed or ended twice.
An outage is told once, and its end once.

An idle worker's waker (wake.py) sends turns of its own behind a wait, on another
connection, one at a time as well: `wake_poll` makes one, `settle` ends one that was lost.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.backoff import ExponentialWithJitterBackoff

from cache.connection.pool import OUTAGE, explain
from cache.connection.scripts import load
from worker.engine.options import EngineOptions
from worker.engine.records import (
    Claim,
    End,
    EngineKeys,
    PollReply,
    PollResult,
    encode_ends,
    read_poll,
)

log = structlog.get_logger(__name__)

_POLL = load(__package__, "poll", "..queue")
_NEXT_JOB = load(__package__, "next_job", "..queue")
# Scripts are short: more than this goes into the next turn.
MOST_CLAIMS = 128
MOST_AHEAD = 128
MOST_ENDS = 256
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.05, 2.0
_TELL_AGAIN_S = 30.0
_LOOK_S = 1.0
# Places among the keys and arguments; lua/next_job.lua takes the first arguments alone.
_LAST_POLL, _FENCE, _OF_NEXT_JOB = 9, 13, 3
_NO_ENDS = encode_ends([])


class PollStopped(Exception):
    """The worker must end while the server cannot be reached; leases give its jobs to others."""


@dataclass(frozen=True, slots=True)
class WakePoll:
    """A turn that waits for a token: `command` claims a job, `args` let lua/poll.lua end it."""

    args: list[Any]
    command: tuple[Any, ...]


class Poll:
    """Sends the turns of one worker, one at a time, and makes those of its waker."""

    def __init__(
        self, client: Any, keys: EngineKeys, options: EngineOptions, *, worker_id: str
    ) -> None:
        self._client = client
        # Turns of an earlier `main()` of the same worker are not taken for this one's.
        self._run_id = f"{worker_id}:{os.urandom(4).hex()}"
        self._polls = 0
        self._granted = 0
        base = keys.base
        self._keys = [
            *keys.queues,
            keys.running,
            keys.wake,
            base.abort,
            base.parked,
            base.dead,
            base.last_poll(worker_id),
            keys.schedules,
        ]
        self._wake_keys = list(self._keys)
        self._wake_keys[_LAST_POLL] = base.last_wake_poll(worker_id)
        self._looked_at = [*keys.queues, keys.running, keys.schedules]
        self._prefix = base.prefix
        self._lease_ms = int(options.lease_s * 1000)
        self._limits = [
            options.max_lost_leases,
            options.dead_max,
            int(options.dead_max_age_s * 1e3),
            options.reserve,
        ]
        self.is_connected = True
        self.may_give_up: Callable[[], bool] = lambda: False

    async def run(
        self,
        ends: Sequence[End],
        want: int,
        *,
        ahead: int = 0,
        marks: bool = True,
        stalled_jobs: int = 1,
    ) -> PollResult:
        """`send`, and its reply read."""
        reply = await self.send(ends, want, ahead=ahead, marks=marks, stalled_jobs=stalled_jobs)
        return read_poll(reply)

    async def send(
        self, ends: Sequence[End], want: int, *, ahead: int, marks: bool, stalled_jobs: int
    ) -> PollReply:
        """
        Send these ends, claim up to `want` jobs (at most `MOST_CLAIMS`).

        `ahead`: so many more (at most `MOST_AHEAD`), but no more than a quarter
        of what other workers find then. `marks`: whether to read abort marks.
        `stalled_jobs`: how many may be jobs whose next lost lease makes them poison.

        Raises:
            PumpStopped: the server is away and `may_give_up()` says so.
        """
        args = self._args(
            self._next_token(),
            encode_ends(ends),
            want,
            ahead=ahead,
            marks=marks,
            stalled_jobs=stalled_jobs,
        )
        reply = PollReply(await self._send(args))
        self._granted += reply.claims
        return reply

    def _next_token(self) -> str:
        self._polls += 1
        return f"{self._run_id}:{self._polls}"

    def _args(
        self,
        token: str,
        ends: bytes,
        want: int,
        *,
        ahead: int = 0,
        marks: bool = False,
        stalled_jobs: int = 0,
        fence: bool = False,
    ) -> list[Any]:
        """The arguments of lua/poll.lua."""
        return [
            self._prefix,
            token,
            self._lease_ms,
            min(want, MOST_CLAIMS),
            self._granted,
            ends,
            *self._limits,
            min(ahead, MOST_AHEAD),
            int(marks),
            stalled_jobs,
            int(fence),
        ]

    def wake_poll(self) -> WakePoll:
        """A turn of an idle worker, which claims one job: to be sent behind a wait for a token."""
        args = self._args(self._next_token(), _NO_ENDS, 0, fence=True)
        few = args[:_OF_NEXT_JOB]
        command = ("EVALSHA", _NEXT_JOB.sha, len(self._wake_keys), *self._wake_keys, *few)
        return WakePoll(args, command)

    async def prepare(self) -> None:
        """Make the wake turns' script known to the server, so that the first one runs too."""
        await self._client.script_load(_NEXT_JOB.source)

    async def settle(self, polled: WakePoll) -> list[Any]:
        """
        The rows of a wake turn whose reply was lost. If it has not arrived yet it will do nothing.

        Raises:
            OUTAGE: that cannot be known yet.
        """
        return PollReply(await _POLL.run(self._client, self._wake_keys, polled.args)).rows

    def granted(self, claims: Sequence[Claim]) -> None:
        """Count claims: of all of them some are reserved."""
        self._granted += len(claims)

    async def finds_nothing(self) -> bool:
        """Whether there is no job at all, running ones included: one cheap command."""
        try:
            async with asyncio.timeout(_LOOK_S):
                return not await self._client.exists(*self._looked_at)
        except OUTAGE:
            return False  # the next turn tells

    async def _send(self, args: list[Any]) -> list[Any]:
        backoff = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S)
        loop = asyncio.get_running_loop()
        since, told, failures = 0.0, 0.0, 0
        while True:
            try:
                reply: list[Any] = await _POLL.run(self._client, self._keys, args)
            except OUTAGE as exc:
                failures += 1
                args[_FENCE] = 1  # a copy of it may still be on its way
                now = loop.time()
                since = since or now
                self.is_connected = False
                if now - told > _TELL_AGAIN_S:
                    told = now
                    log.warning("queue.unreachable", error=explain(exc), retrying=True)
                if self.may_give_up():
                    raise PollStopped from None
                await asyncio.sleep(backoff.compute(failures))
            else:
                if failures:
                    self.is_connected = True
                    log.info("queue.reached", after_s=round(loop.time() - since, 1))
                return reply
