"""
Polls the server: one script call reports finished jobs and claims due ones.

A poll that fails on the way is sent again with the same token until it is
answered. The script recognizes the token, so nothing is claimed or ended twice.
An outage is logged once every 30 s, and its end once. Leases that lapsed during it are
not charged to anybody: they may be renewed before their jobs are claimed.

An idle worker's waker (wake.py) has polls of its own: each is sent behind a wait,
on another connection, one at a time. `wake_poll` makes one; `settle` finds out
what a lost one claimed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import OutOfMemoryError

from cache.connection.owner import rest
from cache.connection.pool import OUTAGE
from cache.connection.refusals import explain
from cache.connection.scripts import load
from cache.logs import get_logger
from worker.engine.options import EngineOptions
from worker.engine.records import (
    CLAIM_FIELDS,
    READ_APART,
    Claim,
    End,
    Group,
    PollReply,
    PollResult,
    encode_ends,
    encode_groups,
    read_poll,
    split_large,
)
from worker.keys import EngineKeys
from worker.queue.staging import LARGE, stage, stage_when_full

log = get_logger(__name__)

POLL = load(__package__, "poll", "..queue")
NEXT_JOB = load(__package__, "next_job", "..queue")
# Limits of one poll, so that no script blocks the server for long.
MOST_CLAIMS = 128
MOST_AHEAD = 128
MOST_ENDS = 256
_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.05, 2.0
_LOG_AGAIN_S = 30.0
_EXISTS_TIMEOUT_S = 1.0
# Indexes into the keys and arguments; lua/next_job.lua takes the first three arguments only.
_LAST_POLL, _STALLED_JOBS, _FENCE, _OF_NEXT_JOB = 9, 12, 13, 3
_ENDS, _STAGED, _ROWS = 5, 15, 9
# For the length of a lease after an outage no lapsed job is claimed: renewals come first.
_NO_LAPSED = -1
_NO_ENDS = encode_ends([])


class PollStopped(Exception):
    """The worker must end while the server is away; its jobs' leases lapse to other workers."""


@dataclass(frozen=True, slots=True)
class WakePoll:
    """A poll behind a wait: `command` claims a job, `args` let lua/poll.lua settle it."""

    args: list[Any]
    command: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Apart:
    """Ends with large parts: the rest, which names keys, and the parts by these keys."""

    rest: Sequence[End]
    parts: dict[str, bytes]


class Poll:
    """Sends the polls of one worker, one at a time, and makes the polls of its waker."""

    def __init__(
        self, client: Any, keys: EngineKeys, options: EngineOptions, *, worker_id: str
    ) -> None:
        self._client = client
        # Separates this `main()` from earlier ones of the same worker.
        self._run_id = f"{worker_id}:{os.urandom(4).hex()}"
        self.number = 0  # of the last poll that was made
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
            keys.paused,
        ]
        self._wake_keys = list(self._keys)
        self._wake_keys[_LAST_POLL] = base.last_wake_poll(worker_id)
        self._looked_at = [*keys.queues, keys.running, keys.schedules]
        self._prefix, self._base = base.prefix, base
        self._lease_ms = int(options.lease_s * 1000)
        self._limits = [
            options.max_lost_leases,
            options.dead_max,
            int(options.dead_max_age_s * 1e3),
            options.reserve,
        ]
        self._spares_s = options.lease_s
        self._spares_until = float("-inf")
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
        groups: Sequence[Group] = (),
    ) -> PollResult:
        """Send a poll and read its reply; arguments as in `send`."""
        reply = await self.send(
            ends, want, ahead=ahead, marks=marks, stalled_jobs=stalled_jobs, groups=groups
        )
        return read_poll(reply)

    async def send(
        self,
        ends: Sequence[End],
        want: int,
        *,
        ahead: int,
        marks: bool,
        stalled_jobs: int,
        groups: Sequence[Group],
    ) -> PollReply:
        """
        Report these ends and claim up to `want` jobs (at most `MOST_CLAIMS`).

        `ahead`: how many more to claim ahead (at most `MOST_AHEAD`, and a quarter of
        the due jobs that are left). `marks`: whether to read abort marks.
        `stalled_jobs`: how many claims may be jobs that one more lost lease makes poison.
        `groups`: the ends as the history counts them (tally.py).

        Raises:
            PollStopped: the server is away and `may_give_up()` returned True.
        """
        token = self._next_token()
        if asyncio.get_running_loop().time() < self._spares_until:
            stalled_jobs = _NO_LAPSED
        args = self._args(
            token,
            encode_ends(ends),
            want,
            ahead=ahead,
            marks=marks,
            stalled_jobs=stalled_jobs,
            groups=groups,
        )
        if len(args[_ENDS]) > LARGE:
            apart = Apart(*split_large(ends, self._base.staged(token)))
            reply = PollReply(await self.call_script(args, apart))
        else:
            reply = PollReply(await self.call_script(args))
        self._granted += reply.claims
        return reply

    def _next_token(self) -> str:
        self.number += 1
        return f"{self._run_id}:{self.number}"

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
        groups: Sequence[Group] = (),
    ) -> list[Any]:
        """Return the arguments of lua/poll.lua."""
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
            encode_groups(groups) if groups else _NO_ENDS,
        ]

    def wake_poll(self) -> WakePoll:
        """Make an idle worker's poll, which claims one job; send it behind a wait for a token."""
        args = self._args(self._next_token(), _NO_ENDS, 0, fence=True)
        return WakePoll(args, NEXT_JOB.command(self._wake_keys, args[:_OF_NEXT_JOB]))

    async def prepare(self) -> None:
        """Load the script of wake polls, so that the first one does not fail."""
        await self._client.script_load(NEXT_JOB.source)

    async def settle(self, polled: WakePoll) -> list[Any]:
        """
        Return the rows of a wake poll whose reply was lost. One that arrives later claims nothing.

        Raises:
            OUTAGE: the server is still away.
        """
        rows = PollReply(await POLL.run(self._client, self._wake_keys, polled.args)).rows
        return await self.with_bodies(rows)

    async def with_bodies(self, rows: list[Any]) -> list[Any]:
        """
        Read what lua/_body.lua left out of these rows: large bodies.

        Raises:
            OUTAGE: the server is away.
        """
        for at in range(1, len(rows), CLAIM_FIELDS):
            if rows[at] == READ_APART:
                key = self._base.job(rows[at - 1].decode(errors="surrogateescape"))
                rows[at] = await self._client.get(key)
        return rows

    async def _send_before(self, args: list[Any], apart: Apart) -> None:
        """Send the large parts of ends, also to a full server: it must end jobs."""
        for key, value in apart.parts.items():
            try:
                await stage(self._client, key, value)
            except OutOfMemoryError:
                await stage_when_full(self._client, key, value)
        args[_ENDS] = encode_ends(apart.rest)
        args[_STAGED:] = list(apart.parts)

    def granted(self, claims: Sequence[Claim]) -> None:
        """Count claims made outside `send`: the reserved share is a share of all claims."""
        self._granted += len(claims)

    async def finds_nothing(self) -> bool:
        """Ask with one cheap command whether there is no job at all, running ones included."""
        try:
            async with asyncio.timeout(_EXISTS_TIMEOUT_S):
                return not await self._client.exists(*self._looked_at)
        except OUTAGE:
            return False  # the next poll logs the outage

    async def call_script(self, args: list[Any], apart: Apart | None = None) -> list[Any]:
        """Call lua/poll.lua until the server answers, and read the large bodies of its claims."""
        backoff = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S)
        loop = asyncio.get_running_loop()
        since, logged_at, failures = 0.0, 0.0, 0
        while True:
            try:
                if apart is not None:
                    await self._send_before(args, apart)
                reply: list[Any] = await POLL.run(self._client, self._keys, args)
                if READ_APART in reply[_ROWS]:
                    await self.with_bodies(reply[_ROWS])
                if apart is not None and apart.parts:
                    await self._client.unlink(*apart.parts)  # of ends whose claims were lost
            except OUTAGE as exc:
                failures += 1
                args[_FENCE] = 1  # the failed call may still arrive
                args[_STALLED_JOBS] = _NO_LAPSED
                now = loop.time()
                since = since or now
                self.is_connected = False
                if now - logged_at > _LOG_AGAIN_S:
                    logged_at = now
                    log.warning("queue.unreachable", error=explain(exc), retrying=True)
                if self.may_give_up():
                    raise PollStopped from None
                await rest(self._client, backoff.compute(failures))
            else:
                if failures:
                    self.is_connected = True
                    self._spares_until = loop.time() + self._spares_s
                    log.info("queue.reached", after_s=round(loop.time() - since, 1))
                return reply
