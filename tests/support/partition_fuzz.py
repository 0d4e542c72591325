"""
Writers and readers of one value, while the network of one process is cut at random.

The database is a rising number. A write is acknowledged when `invalidate` has returned
True. From then on nobody may be served a smaller number.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from cache import Cache
from tests.support.fault_proxy import FaultProxy

AGENT = "agent"
_WRITE_EVERY_S = 0.08
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
    acknowledged: int = 0
    while_cut: int = 0  # acknowledged, and the server had not heard
    cuts: int = 0
    stale: int = 0


class Fuzz:
    """
    Args:
        cut: the cache behind `proxy`.
        free: a cache that always reaches the server.
        longest_s: of a cut; beyond a lease some writes are not acknowledged.
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
        self.findings = Findings()

    async def run(self, seconds: float) -> Findings:
        asyncio.get_running_loop().call_later(seconds, self._end)
        tasks = [self._write(self._cut, _WRITE_EVERY_S) for _ in range(2)]
        tasks.append(self._write(self._free, _FREE_WRITE_EVERY_S))
        tasks += [self._read(cache) for cache in (self._cut, self._free, self._free) * 2]
        await asyncio.gather(*tasks, self._break())
        return self.findings

    def _end(self) -> None:
        self._ending = True

    async def _write(self, cache: Cache, every_s: float) -> None:
        while not self._ending:
            await asyncio.sleep(self._rng.uniform(0, every_s))
            self._value += 1
            mine = self._value
            sure = await cache.agents.invalidate(AGENT)
            self.findings.writes += 1
            self.findings.acknowledged += sure
            self.findings.while_cut += sure and not cache.stats()["trusted"]
            if sure:
                self._acknowledged = max(self._acknowledged, mine)

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
