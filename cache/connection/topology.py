"""
Finds the cluster node that owns one slot, and follows the slot when it moves.

Callers report a node that refuses or is silent (`suspect`). Then all nodes are asked for
their slot maps at once, in rounds that all callers share, with a backoff between two
rounds, until another node owns the slot or the suspected one serves again. If the maps
differ, the one with the highest epoch counts: a node behind a partition has an old map.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError

from cache.connection.protocol import Away
from cache.connection.refusals import refusal_of
from cache.connection.tasks import end, joined
from cache.logs import get_logger

log = get_logger(__name__)

Address = tuple[str, int]

_BACKOFF_BASE_S, _BACKOFF_CAP_S = 0.05, 0.5
# Most nodes asked in one round; a cluster may have hundreds.
_MOST_ASKED = 8
# Time for the other answers of a round after its first one: a node may be stopped.
_OTHERS_S = 0.2
# Callers that ask again within this time get the last round's result.
_PACE_S = 0.05
_OUTAGE = (RedisError, OSError, asyncio.TimeoutError)


@dataclass(frozen=True, slots=True)
class View:
    """
    One node's view of the cluster: whether it serves, its epoch, the slot's owner, all nodes.

    `asked`: the address of the node that was asked.
    """

    serves: bool
    epoch: int
    owner: Address | None
    nodes: tuple[Address, ...]
    asked: Address


def read_view(slot: int, ranges: Sequence[Any], info: Any, asked: Address) -> View:
    """Parse the replies of the node at `asked` to CLUSTER SLOTS and CLUSTER INFO."""
    owner, nodes = None, dict[Address, None]()
    for first, last, *members in ranges:
        addresses = [_address(member, asked) for member in members]
        nodes |= dict.fromkeys(addresses)
        if first <= slot <= last:
            owner = addresses[0]
    text = info.decode() if isinstance(info, bytes) else str(info)
    facts = dict(line.partition(":")[::2] for line in text.split())
    epoch = int(facts.get("cluster_current_epoch", 0))
    return View(facts.get("cluster_state") == "ok", epoch, owner, tuple(nodes), asked)


def _address(member: Sequence[Any], asked: Address) -> Address:
    host = member[0].decode() if isinstance(member[0], bytes) else member[0]
    # An empty host means the address at which the node was asked.
    return (host if host and host != "?" else asked[0]), int(member[1])


class Topology:
    """
    The owner of one slot.

    Args:
        seeds: nodes to ask first; one is enough, such as a configuration endpoint.
        ask: reads a node's view.
        moved: called with the new owner, before any caller gets its address.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        ask: Callable[[Address], Awaitable[View]],
        moved: Callable[[Address], None],
    ) -> None:
        self.seeds = tuple(seeds)
        self._ask = ask
        self._moved = moved
        self._owner: Address | None = None
        self._epoch = 0
        self._known: tuple[Address, ...] = ()
        self._suspected: Address | None = None
        self._asked_at = float("-inf")
        self._learning: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def nodes(self) -> tuple[Address, ...]:
        return self._known or self.seeds

    async def owner(self) -> Address:
        """
        Return the address of the owner. If the owner is suspected, ask the nodes first.

        Raises:
            RedisError: no node could be reached, or the reason why they refused.
        """
        if self._owner is not None and self._suspected is None:
            return self._owner
        loop = asyncio.get_running_loop()
        if self._owner is None or loop.time() - self._asked_at > _PACE_S:
            try:
                await self._learn()
            except _OUTAGE:
                if self._owner is None:
                    raise
        assert self._owner is not None  # noqa: S101
        return self._owner

    def suspect(self, address: Address, named: Address | None = None) -> None:
        """Report that a node does not serve the slot. `named`: the owner that this node named."""
        if address != self._owner:
            return
        if named is not None and named != address:
            self._adopt(named)
            return
        self._suspected = address
        if self._following is None or self._following.done():
            self._following = asyncio.ensure_future(self._follow())

    def confirm(self, address: Address) -> None:
        """Report that a client has connected to a node."""
        if address == self._suspected:
            self._suspected = None
            self._tell()

    async def rest(self, seconds: float) -> None:
        """Sleep for so many seconds, at most until the slot is known to be served again."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiters.discard(waiter)

    async def close(self) -> None:
        tasks = [task for task in (self._following, self._learning) if task is not None]
        self._following = self._learning = None
        for task in tasks:
            if task.get_loop() is asyncio.get_running_loop():
                await end(task)

    async def _follow(self) -> None:
        backoff = ExponentialWithJitterBackoff(_BACKOFF_CAP_S, _BACKOFF_BASE_S)
        failures = 0
        while self._suspected is not None:
            with suppress(*_OUTAGE):
                await self._learn()
            failures += 1
            if self._suspected is not None:
                await asyncio.sleep(_PACE_S + backoff.compute(failures))

    async def _learn(self) -> None:
        """Ask the nodes. Concurrent calls share one round."""
        task = self._learning
        if task is None or task.done():
            task = self._learning = asyncio.ensure_future(self._ask_nodes())
            task.add_done_callback(_retrieve)
        await joined(task)

    async def _ask_nodes(self) -> None:
        known = random.sample(self._known, len(self._known))
        asked = list(dict.fromkeys([*known, *self.seeds]))[:_MOST_ASKED]
        pending = {asyncio.ensure_future(self._ask(address)) for address in asked}
        views: list[View] = []
        errors: list[BaseException] = []
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending,
                    timeout=_OTHERS_S if views else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                for task in done:
                    error = task.exception()
                    if error is None:
                        views.append(task.result())
                    else:
                        errors.append(error)
                if any(self._is_newer(view) for view in views):
                    break  # no other node can know more
        finally:
            await end(*pending)
            self._asked_at = asyncio.get_running_loop().time()
        self._choose(views, errors)

    def _is_newer(self, view: View) -> bool:
        is_another = view.owner is not None and view.owner != self._owner
        return is_another and view.serves and self._owner is not None and view.epoch > self._epoch

    def _choose(self, views: list[View], errors: list[BaseException]) -> None:
        found = [view for view in views if view.owner is not None]
        if not found:
            # A refusal tells the operator more than an outage of another node.
            errors.sort(key=lambda error: refusal_of(error) is None)
            raise errors[0] if errors else Away("no node of the cluster owns the queue's slot")
        best = max(found, key=lambda v: (v.serves, v.epoch, v.owner != self._suspected))
        self._known, self._epoch = best.nodes, best.epoch
        assert best.owner is not None  # noqa: S101
        if best.owner != self._owner:
            self._adopt(best.owner)
        elif any(view.serves and view.asked == view.owner == self._suspected for view in found):
            self.confirm(best.owner)  # it was slow, or only lost a connection

    def _adopt(self, owner: Address) -> None:
        before, self._owner, self._suspected = self._owner, owner, None
        if before is not None:
            log.info("cluster.slot_moved", node=f"{owner[0]}:{owner[1]}")
        self._moved(owner)
        self._tell()

    def _tell(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # the waiting callers get it
