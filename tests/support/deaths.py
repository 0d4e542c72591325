"""
Processes with open caches that die at random, and a count of what the others notice.

    python -m tests.support.deaths --processes 20 --seconds 60 --signals SIGKILL,SIGSTOP --stop 60

Each process reads two kinds of agents: cold ones, which nobody writes, and those that the
processes write, a few each. The database is shared memory. Some signal ends a process wherever it
happens to be; another process takes its place. SIGSTOP stops it for longer than an intent's TTL,
and one of them for `--stop` seconds. With `--faults restart,flush,failover,switch` the server
breaks too (pair.py), each way `--times` times.
Prints the findings as JSON. The processes are forked, because importing takes longer than they live.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import count

from tests.support.caches import cache_on
from tests.support.pair import LOSSES, Pair, pair
from tests.support.wait import eventually_sync

COLD = 40
# Agents that each process writes. Between two writes of one, a value that a fault has brought back
# is served often enough to be noticed.
_WRITTEN = 4
TTL_S = 2.0
_CELL = 8
_READ_EVERY_S, _WRITE_EVERY_S, _PHASE_S = 0.02, 0.05, 0.02
_STRIKE_EVERY_S = 0.3
_READY_S = 60.0


@dataclass
class Findings:
    """
    Results of a run.

    `stale` must be 0, and `unended` too unless the server has lost intents. `cold_loads` is at most
    the number of cold agents, once more for each of `losses`.
    """

    struck: int = 0
    losses: int = 0  # times that a fault of the server made every value one to load again
    reads: int = 0
    hits: int = 0
    writes: int = 0
    lapsed: int = 0  # writes whose intent did not hold at their commit, so nothing was committed
    stale: int = 0  # values older than a write whose end returned True
    unended: int = 0  # values older than a write that was committed, but had not ended so
    cold_loads: int = 0
    bypassed: int = 0  # loads of cold agents by a process that had no connection yet


class Shared:
    """Rows of numbers in memory that all processes share. Each cell has one writer at a time."""

    def __init__(self, processes: int) -> None:
        self._names = ("ready", "row", "ended", *asdict(Findings()))
        self._cells = processes * _WRITTEN
        self._memory = mmap.mmap(-1, len(self._names) * self._cells * _CELL)

    def _at(self, name: str, cell: int) -> slice:
        start = (self._names.index(name) * self._cells + cell) * _CELL
        return slice(start, start + _CELL)

    def get(self, name: str, cell: int) -> int:
        return int.from_bytes(self._memory[self._at(name, cell)], "big")

    def add(self, name: str, cell: int, more: int = 1) -> None:
        at = self._at(name, cell)
        self._memory[at] = (int.from_bytes(self._memory[at], "big") + more).to_bytes(_CELL, "big")

    def total(self, name: str) -> int:
        return sum(self.get(name, cell) for cell in range(self._cells))


class Process:
    """What one of the processes does: it reads all the time, and writes its own agents."""

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
                await self._read_written(self._rng.randrange(self._processes * _WRITTEN))

    async def _read_cold(self, number: int) -> None:
        async def load() -> int:
            trusted = self._cache.stats()["trusted"]
            self._shared.add("cold_loads" if trusted else "bypassed", self._slot)
            return number

        await self._cache.agents.get_or_load(f"cold{number}", load)

    async def _read_written(self, agent: int) -> None:
        shared, loads = self._shared, count()

        async def load() -> int:
            next(loads)
            found = shared.get("row", agent)
            await asyncio.sleep(self._rng.uniform(0, _PHASE_S))
            return found

        ended, row = shared.get("ended", agent), shared.get("row", agent)
        value = await self._cache.agents.get_or_load(f"written{agent}", load)
        shared.add("reads", self._slot)
        shared.add("hits", self._slot, int(next(loads) == 0))
        shared.add("stale", self._slot, int(value < ended))
        shared.add("unended", self._slot, int(ended <= value < row))

    async def _write(self) -> None:
        """Each sleep is a place to die: idle, begun, committed."""
        rng, shared, slot = self._rng, self._shared, self._slot
        while True:
            await asyncio.sleep(rng.uniform(0, _WRITE_EVERY_S))
            agent = slot * _WRITTEN + rng.randrange(_WRITTEN)
            token = await self._cache.begin_write(agents=[f"written{agent}"])
            await asyncio.sleep(rng.uniform(0, _PHASE_S))
            if token.holds:
                shared.add("row", agent)  # commits
                shared.add("writes", slot)
            else:
                shared.add("lapsed", slot)
            await asyncio.sleep(rng.uniform(0, _PHASE_S))
            row = shared.get("row", agent)
            if await self._cache.end_write(token):
                shared.add("ended", agent, row - shared.get("ended", agent))


class Deaths:
    """
    Forks the processes, strikes them at random and replaces the dead.

    Args:
        stop_s: how long the first SIGSTOP lasts. Others last up to two TTLs of an intent.
        faults: what happens to the server in between, as names of methods of `servers`.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        processes: int,
        seed: int,
        *,
        stop_s: float = 2 * TTL_S,
        servers: Pair | None = None,
        faults: list[str] | None = None,
    ) -> None:
        self._url, self._prefix, self._processes = url, prefix, processes
        self._shared = Shared(processes)
        self._rng = random.Random(seed)
        self._stop_s, self._servers, self._faults = stop_s, servers, faults or []
        self._pids: dict[int, int] = {}  # slot -> process
        self._stopped: dict[int, float] = {}  # slot -> when it goes on
        self._struck = self._stops = self._losses = 0

    def run(self, seconds: float, signals: list[signal.Signals]) -> Findings:
        try:
            self._fork(0)
            self._wait_until_ready(1)  # it has loaded the cold agents
            for slot in range(1, self._processes):
                self._fork(slot)
            self._wait_until_ready(self._processes)
            start = time.monotonic()
            self._end_at = start + seconds
            self._rng.shuffle(self._faults)
            between_s = seconds / (len(self._faults) + 1)
            self._due = [start + between_s * (i + 1) for i in range(len(self._faults))]
            for struck in self._strikes():
                self._strike(struck, self._rng.choice(signals))
        finally:
            for slot in list(self._pids):
                self._end(slot)
        names = [name for name in asdict(Findings()) if name not in {"struck", "losses"}]
        totals = {name: self._shared.total(name) for name in names}
        return Findings(self._struck, self._losses, **totals)

    def _strikes(self) -> Iterator[int]:
        while time.monotonic() < self._end_at or self._faults or not self._is_enough():
            time.sleep(self._rng.uniform(0, _STRIKE_EVERY_S))
            for slot, until in list(self._stopped.items()):
                if time.monotonic() > until:
                    del self._stopped[slot]
                    os.kill(self._pids[slot], signal.SIGCONT)
            if self._faults and time.monotonic() > self._due[0]:
                self._break_server(self._faults.pop(), self._due.pop(0))
            free = [slot for slot in self._pids if slot not in self._stopped]
            # Half of them at most are stopped, so that the others go on reading.
            if len(free) > self._processes // 2:
                yield self._rng.choice(free)

    def _is_enough(self) -> bool:
        """Whether the findings mean something: a busy machine takes longer."""
        total = self._shared.total
        return self._struck > 2 and total("writes") > 10 and total("hits") > 0

    def _break_server(self, fault: str, due: float) -> None:
        assert self._servers is not None
        getattr(self._servers, fault)()
        self._losses += LOSSES[fault]
        # The others happen as long after it as they would have, and so does the end.
        late_s = time.monotonic() - due
        self._due = [at + late_s for at in self._due]
        self._end_at += late_s

    def _strike(self, slot: int, number: signal.Signals) -> None:
        self._struck += 1
        if number == signal.SIGSTOP:
            self._stops += 1
            long = self._stops == 1
            stop_s = self._stop_s if long else self._rng.uniform(0, 2 * TTL_S)
            os.kill(self._pids[slot], number)
            self._stopped[slot] = until = time.monotonic() + stop_s
            if long:  # what it does after that counts too
                self._end_at = max(self._end_at, until + TTL_S)
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


def main() -> None:
    parser = argparse.ArgumentParser(description="What processes that die cost the others.")
    parser.add_argument("--url", help="of the server; default: one of its own, with a replica")
    parser.add_argument("--prefix", default="deaths:")
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--signals", default="SIGKILL,SIGTERM")
    parser.add_argument("--stop", type=float, default=2 * TTL_S)
    parser.add_argument("--faults", default="")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    given = parser.parse_args()
    faults = [name for name in given.faults.split(",") if name] * given.times
    with ExitStack() as stack:
        servers = None if given.url else stack.enter_context(pair(random.Random(given.seed)))
        deaths = Deaths(
            servers.url if servers else given.url,
            given.prefix,
            given.processes,
            given.seed,
            stop_s=given.stop,
            servers=servers,
            faults=faults,
        )
        found = deaths.run(given.seconds, [signal.Signals[n] for n in given.signals.split(",")])
    sys.stdout.write(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
