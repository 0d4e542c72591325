"""
Processes with open caches that die at random, and a count of what the others notice.

    python -m tests.support.deaths <url> <prefix> <processes> <seconds> <signals> <seed>

Each process reads two kinds of agents: cold ones, which nobody writes, and those that the
processes write, one each. The database is shared memory. Some signal ends a process wherever it
happens to be; another process takes its place. SIGSTOP stops it for longer than an intent's TTL.
Prints the findings as JSON. The processes are forked, because importing takes longer than they live.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count

from tests.support.caches import cache_on
from tests.support.wait import eventually_sync

COLD = 40
TTL_S = 2.0
_CELL = 8
_READ_EVERY_S, _WRITE_EVERY_S, _PHASE_S = 0.02, 0.05, 0.02
_STRIKE_EVERY_S = 0.3
_READY_S = 60.0


@dataclass
class Findings:
    """Results of a run. `stale` must be 0, and `cold_loads` no more than there are cold agents."""

    struck: int = 0
    reads: int = 0
    hits: int = 0
    writes: int = 0
    lapsed: int = 0  # writes whose intent did not hold at their commit, so nothing was committed
    stale: int = 0
    cold_loads: int = 0
    bypassed: int = 0  # loads of cold agents by a process that had no connection yet


class Shared:
    """Rows of numbers in memory that all processes share. Each cell has one writer at a time."""

    def __init__(self, processes: int) -> None:
        self._names = ("ready", "row", *asdict(Findings()))
        self._processes = processes
        self._memory = mmap.mmap(-1, len(self._names) * processes * _CELL)

    def _at(self, name: str, slot: int) -> slice:
        start = (self._names.index(name) * self._processes + slot) * _CELL
        return slice(start, start + _CELL)

    def get(self, name: str, slot: int) -> int:
        return int.from_bytes(self._memory[self._at(name, slot)], "big")

    def add(self, name: str, slot: int, more: int = 1) -> None:
        cell = self._at(name, slot)
        self._memory[cell] = (int.from_bytes(self._memory[cell], "big") + more).to_bytes(8, "big")

    def total(self, name: str) -> int:
        return sum(self.get(name, slot) for slot in range(self._processes))


class Process:
    """What one of the processes does: it reads all the time, and writes its own agent."""

    def __init__(self, url: str, prefix: str, shared: Shared, slot: int, processes: int) -> None:
        self._url, self._prefix = url, prefix
        self._shared, self._slot, self._processes = shared, slot, processes
        self._rng = random.Random()

    async def run(self) -> None:
        async with cache_on(self._url, self._prefix, intent_s=TTL_S) as cache:
            self._cache = cache
            if not self._shared.total("ready"):
                for number in range(COLD):
                    await self._read_cold(number)
            self._shared.add("ready", self._slot)
            await asyncio.gather(self._read(), self._read(), self._write())

    async def _read(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0, _READ_EVERY_S))
            if self._rng.random() < 0.5:
                await self._read_cold(self._rng.randrange(COLD))
            else:
                await self._read_written(self._rng.randrange(self._processes))

    async def _read_cold(self, number: int) -> None:
        async def load() -> int:
            trusted = self._cache.stats()["trusted"]
            self._shared.add("cold_loads" if trusted else "bypassed", self._slot)
            return number

        await self._cache.agents.get_or_load(f"cold{number}", load)

    async def _read_written(self, slot: int) -> None:
        shared, loads = self._shared, count()

        async def load() -> int:
            next(loads)
            found = shared.get("row", slot)
            await asyncio.sleep(self._rng.uniform(0, _PHASE_S))
            return found

        least = shared.get("row", slot)
        value = await self._cache.agents.get_or_load(f"written{slot}", load)
        shared.add("reads", self._slot)
        shared.add("hits", self._slot, int(next(loads) == 0))
        shared.add("stale", self._slot, int(value < least))

    async def _write(self) -> None:
        """Each sleep is a place to die: idle, begun, committed."""
        rng, shared, slot = self._rng, self._shared, self._slot
        while True:
            await asyncio.sleep(rng.uniform(0, _WRITE_EVERY_S))
            async with self._cache.writing(agents=[f"written{slot}"]) as token:
                await asyncio.sleep(rng.uniform(0, _PHASE_S))
                if token.holds:
                    shared.add("row", slot)  # commits
                    shared.add("writes", slot)
                else:
                    shared.add("lapsed", slot)
                await asyncio.sleep(rng.uniform(0, _PHASE_S))


class Deaths:
    """Forks the processes, strikes them at random and replaces the dead."""

    def __init__(self, url: str, prefix: str, processes: int, seed: int) -> None:
        self._url, self._prefix, self._processes = url, prefix, processes
        self._shared = Shared(processes)
        self._rng = random.Random(seed)
        self._pids: dict[int, int] = {}  # slot -> process
        self._stopped: dict[int, float] = {}  # slot -> when it goes on

    def run(self, seconds: float, signals: list[signal.Signals]) -> Findings:
        try:
            self._fork(0)
            self._wait_until_ready(1)  # it has loaded the cold agents
            for slot in range(1, self._processes):
                self._fork(slot)
            self._wait_until_ready(self._processes)
            end = time.monotonic() + seconds
            for struck in self._strikes(end):
                self._strike(struck, self._rng.choice(signals))
        finally:
            for slot in list(self._pids):
                self._end(slot)
        names = [name for name in asdict(Findings()) if name != "struck"]
        totals = {name: self._shared.total(name) for name in names}
        return Findings(self._struck, **totals)

    _struck = 0

    def _strikes(self, end: float) -> Iterator[int]:
        while time.monotonic() < end or not self._is_enough():
            time.sleep(self._rng.uniform(0, _STRIKE_EVERY_S))
            for slot, until in list(self._stopped.items()):
                if time.monotonic() > until:
                    del self._stopped[slot]
                    os.kill(self._pids[slot], signal.SIGCONT)
            free = [slot for slot in self._pids if slot not in self._stopped]
            # Half of them at most are stopped, so that the others go on reading.
            if len(free) > self._processes // 2:
                yield self._rng.choice(free)

    def _is_enough(self) -> bool:
        """Whether the findings mean something: a busy machine takes longer."""
        total = self._shared.total
        return self._struck > 2 and total("writes") > 10 and total("hits") > 0

    def _strike(self, slot: int, number: signal.Signals) -> None:
        self._struck += 1
        if number == signal.SIGSTOP:
            os.kill(self._pids[slot], number)
            self._stopped[slot] = time.monotonic() + self._rng.uniform(0, 2 * TTL_S)
            return
        self._end(slot, number)
        self._fork(slot)

    def _end(self, slot: int, number: signal.Signals = signal.SIGKILL) -> None:
        pid = self._pids.pop(slot)
        os.kill(pid, number)
        os.waitpid(pid, 0)

    def _fork(self, slot: int) -> None:
        pid = os.fork()
        if pid:
            self._pids[slot] = pid
            return
        process = Process(self._url, self._prefix, self._shared, slot, self._processes)
        try:
            asyncio.run(process.run())
        finally:
            os._exit(1)

    def _wait_until_ready(self, ready: int) -> None:
        eventually_sync(lambda: self._shared.total("ready") >= ready, deadline_s=_READY_S)


def main(url: str, prefix: str, *words: str) -> None:
    processes, seconds, signals, seed = words
    deaths = Deaths(url, prefix, int(processes), int(seed))
    numbers = [signal.Signals[name] for name in signals.split(",")]
    sys.stdout.write(json.dumps(asdict(deaths.run(float(seconds), numbers))))


if __name__ == "__main__":
    main(*sys.argv[1:])
