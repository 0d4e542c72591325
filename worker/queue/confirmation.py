"""
Confirms with WAIT that replicas have what a call has stored.

Replication is a single stream, so a write of our own that comes after the stored one,
and `WAIT` behind it on the same connection, confirm both. That connection is used for
nothing else, because `WAIT` blocks it. Calls that come while one `WAIT` is under way
share the next one.

A failover between the call and its `WAIT` must not confirm what the new master lacks.
So the connection is opened before the call is sent, and what confirms must be the same
process, in the same reign as a master, as what has stored.

When replicas are missing, calls are unconfirmed: they no longer wait, and one task
asks again until enough replicas answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import ResponseError

from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.owner import rest
from cache.connection.pool import OUTAGE
from cache.connection.refusals import explain
from cache.connection.tasks import end
from cache.logs import get_logger
from worker.errors import InvalidArgument, NotConfirmed
from worker.keys import CONFIRM_TTL_S, QueueKeys
from worker.queue.calls import T
from worker.queue.options import ConfirmOptions

log = get_logger(__name__)

MOST_REPLICAS = 5
# A server that stays silent for so long, beyond WAIT's own timeout, is away.
_MARGIN_S = 5.0
# Pauses between two looks whether replicas are back.
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0
_TELL_EVERY_S = 60.0

# The process that answered, and its reign.
Reign = tuple[bytes, bytes]


class Confirmations:
    """The confirmations of one client. Calls that want as many replicas share one connection."""

    def __init__(self, client: Any, keys: QueueKeys, options: ConfirmOptions) -> None:
        self._client = client
        self._key = keys.confirm
        self._options = options
        self._confirmers: dict[int, _Confirmer] = {}

    async def of(
        self, store: Callable[[], Awaitable[T]], replicas: int | None
    ) -> tuple[T, bool | None]:
        """
        Store, and return what that returned and whether so many replicas have it.

        `replicas`: None for LETTA_QUEUE_WAIT_REPLICAS; 0 confirms nothing and returns None.
        """
        wanted = self._options.replicas if replicas is None else _checked(replicas)
        if not wanted:
            return await store(), None
        confirmer = self._confirmers.get(wanted)
        if confirmer is None:
            timeout_s = self._options.timeout_s
            confirmer = self._confirmers[wanted] = _Confirmer(
                self._client, self._key, wanted, timeout_s
            )
        reign = await confirmer.enter()
        stored = await store()
        return stored, await confirmer.confirm(reign)

    def require(self, confirmed: bool | None, *ids: str) -> None:
        """
        Raises:
            NotConfirmed: it is not, and LETTA_QUEUE_WAIT_REQUIRED is set.
        """
        if confirmed is False and self._options.required:
            raise NotConfirmed(ids)

    async def aclose(self) -> None:
        for confirmer in self._confirmers.values():
            await confirmer.aclose()


class _Confirmer:
    """One connection for `WAIT`, and the calls that want a number of replicas."""

    def __init__(self, client: Any, key: str, replicas: int, timeout_s: float) -> None:
        self._client = client
        self._connection = MultiplexedConnection(
            client, timeout_s=timeout_s + _MARGIN_S, blocks=True
        )
        self._commands = (
            ("SET", key, b"", "EX", CONFIRM_TTL_S),
            ("WAIT", replicas, max(1, round(timeout_s * 1000))),
            ("INFO", "replication"),
        )
        self._replicas = replicas
        self._waiting: list[tuple[Reign, asyncio.Future[bool]]] = []
        self._rounds: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None
        self._missed = 0
        self._told_at = float("-inf")

    async def enter(self) -> Reign | None:
        """Connect, and return whose word will count; None while replicas are missing."""
        if self._mending is not None:
            return None
        try:
            async with asyncio.timeout(_MARGIN_S):
                await self._connection.connect()
        except TimeoutError:
            self._suspend(f"not connected within {_MARGIN_S} s")
            return None
        except OUTAGE as exc:
            self._suspend(explain(exc))
            return None
        return self._connection.reign

    async def confirm(self, reign: Reign | None) -> bool:
        """Return whether enough replicas have what was stored since `enter`."""
        if reign is None or self._mending is not None:
            self._missed += 1
            return False
        if reign[0] != getattr(self._client, "run_id", b""):
            # Another server has stored it than would confirm it.
            self._connection.lose("it leads to another server than the calls")
            self._missed += 1
            return False
        call: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((reign, call))
        if self._rounds is None:
            self._rounds = asyncio.ensure_future(self._serve())
        return await call

    async def aclose(self) -> None:
        tasks = [task for task in (self._rounds, self._mending) if task is not None]
        await end(*tasks)
        self._answer(self._waiting, None)
        await self._connection.close()

    async def _serve(self) -> None:
        """Confirm for all who wait, again while more have come meanwhile."""
        group: list[tuple[Reign, asyncio.Future[bool]]] = []
        try:
            while self._waiting and self._mending is None:
                group, self._waiting = self._waiting, []
                lack = await self._round()
                self._answer(group, None if lack else self._connection.reign)
                if lack:
                    self._suspend(lack)
        finally:
            self._rounds = None
            self._answer([*group, *self._waiting], None)
            self._waiting = []

    async def _round(self) -> str:
        """Write and wait. Return what is lacking, "" when nothing is."""
        try:
            wrote, found, info = await self._connection.execute_many(self._commands)
            for reply in (wrote, found, info):
                if isinstance(reply, ResponseError):
                    raise reply
        except OUTAGE as exc:
            return explain(exc)
        self._connection.learn_reign(info)
        return "" if found >= self._replicas else f"{found} of {self._replicas} replicas answered"

    def _answer(self, group: list[tuple[Reign, asyncio.Future[bool]]], reign: Reign | None) -> None:
        for since, call in group:
            if not call.done():
                self._missed += since != reign
                call.set_result(since == reign)

    def _suspend(self, lack: str) -> None:
        self._tell(lack)
        if self._mending is None:
            self._mending = asyncio.ensure_future(self._mend())

    async def _mend(self) -> None:
        """Ask until enough replicas answer."""
        since, pause_s = time.monotonic(), _PAUSE_S
        while True:
            await rest(self._client, pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            lack = await self._round()
            if not lack:
                break
            self._tell(lack)
        self._mending = None
        log.info(
            "queue.confirmed_again",
            replicas=self._replicas,
            after_s=round(time.monotonic() - since, 1),
            unconfirmed=self._missed,
        )
        self._missed = 0

    def _tell(self, lack: str) -> None:
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            log.warning(
                "queue.unconfirmed", replicas=self._replicas, error=lack, unconfirmed=self._missed
            )


def _checked(replicas: Any) -> int:
    if type(replicas) is not int or not 0 <= replicas <= MOST_REPLICAS:
        raise InvalidArgument(
            f"wait_replicas must be a whole number from 0 to {MOST_REPLICAS}, not {replicas!r}"
        )
    return replicas
