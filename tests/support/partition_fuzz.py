"""
Writers and readers of one value, while the network of one process is cut at random.

The database is a rising number. A write whose intent holds counts from its commit on;
another counts when its end has returned True, or its queue is delivered. From then on
nobody may be served a smaller number.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from cache import Cache, CacheUnavailable
from tests.support.fault_proxy import FaultProxy
from tests.support.wait import eventually

AGENT = "agent"
_WRITE_EVERY_S = 0.08
_WRITE_S = 0.02
# Rarely, because its invalidations hide those that the other process could not deliver.
_FREE_WRITE_EVERY_S = 1.5
_LOAD_S = 0.004
_READ_EVERY_S = 0.003
_QUIET_S = 0.8


@dataclass
class Findings:
    """Results of a run. `stale` must be 0."""

    reads: int = 0
    hits: int = 0
    writes: int = 0
    refused: int = 0
    held: int = 0  # counted from their commit on
    while_cut: int = 0  # of these, the server had not heard of the end
    unsure: int = 0  # counted when their queue was delivered
    cuts: int = 0
    stale: int = 0


class Fuzz:
    """
    Args:
        cut: the cache behind `proxy`.
        free: a cache that always reaches the server.
        longest_s: of a cut, and of a write; beyond an intent's TTL it may lapse.
    """

    def __init__(
        self, cut: Cache, free: Cache, proxy: FaultProxy, *, longest_s: float, seed: int
    ) -> None:
        self._cut, self._free, self._proxy = cut, free, proxy
        self._longest_s = longest_s
        self._rng = random.Random(seed)
        self._value = 0
        self._acknowledged = 0
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []
        self.findings = Findings()

    async def run(self, seconds: float, *, enough: Callable[[Findings], bool]) -> Findings:
        """Run that long, and on until there is enough: a busy machine takes longer."""
        tasks = [self._write(self._cut, _WRITE_EVERY_S) for _ in range(2)]
        tasks.append(self._write(self._free, _FREE_WRITE_EVERY_S))
        tasks += [self._read(cache) for cache in (self._cut, self._free, self._free) * 2]
        await asyncio.gather(*tasks, self._break(), self._end(seconds, enough))
        await asyncio.gather(*self._tasks)
        return self.findings

    async def _end(self, seconds: float, enough: Callable[[Findings], bool]) -> None:
        async def found() -> bool:
            return enough(self.findings)

        try:
            await asyncio.sleep(seconds)
            await eventually(found, deadline_s=60)
        finally:
            self._ending = True

    async def _write(self, cache: Cache, every_s: float) -> None:
        rng = self._rng
        while not self._ending:
            await asyncio.sleep(rng.uniform(0, every_s))
            try:
                token = await cache.begin_write(agents=[AGENT])
            except CacheUnavailable:
                self.findings.refused += 1
                continue
            slow = rng.random() < 0.05
            await asyncio.sleep(rng.uniform(0, self._longest_s if slow else _WRITE_S))
            held = token.holds
            self._value += 1  # commits
            mine = self._value
            if held:
                self._count(mine)
            self.findings.writes += 1
            self.findings.held += held
            sure = await cache.end_write(token)
            self.findings.while_cut += held and not cache.stats()["trusted"]
            if sure:
                self._count(mine)
            else:
                self.findings.unsure += 1
                self._tasks.append(asyncio.create_task(self._count_later(cache, mine)))

    def _count(self, value: int) -> None:
        self._acknowledged = max(self._acknowledged, value)

    async def _count_later(self, cache: Cache, value: int) -> None:
        await cache.settled()
        self._count(value)

    async def _read(self, cache: Cache) -> None:
        loads = 0

        async def load() -> int:
            nonlocal loads
            loads += 1
            value = self._value
            await asyncio.sleep(self._rng.uniform(0, _LOAD_S))
            return value

        while not self._ending:
            await asyncio.sleep(self._rng.uniform(0, _READ_EVERY_S))
            least, before = self._acknowledged, loads
            value = await cache.agents.get_or_load(AGENT, load)
            self.findings.reads += 1
            self.findings.hits += loads == before
            self.findings.stale += value < least

    async def _break(self) -> None:
        rng, proxy = self._rng, self._proxy
        while not self._ending:
            await asyncio.sleep(rng.uniform(0, _QUIET_S))
            self.findings.cuts += 1
            kind = rng.randrange(3)
            if kind == 0:
                proxy.reset()
                continue
            if kind == 1:
                proxy.hold()
            else:
                proxy.refuse = True
                proxy.reset()
            await asyncio.sleep(rng.uniform(0, self._longest_s))
            proxy.refuse = False
            proxy.release()
