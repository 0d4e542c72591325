"""
Runs writers, readers and faults on one conversation, and checks what readers see.

The model of a database: sequence ids are drawn before a transaction and
committed after it, so commits come out of order, and other conversations
draw from the same sequence. A message is acknowledged when its append has
returned. From then on every page that reaches that far back must contain it.
"""

from __future__ import annotations

import asyncio
import random
from bisect import insort
from dataclasses import dataclass, field
from typing import Any

from cache import Cache
from tests.support.wait import eventually

AGENT = "agent"
_LIMIT = 20
_TRANSACTION_S = 0.004
_READ_EVERY_S = 0.004
_READS_PER_ACCIDENT = 100  # not so often a second: on a busy machine few reads would be hits


@dataclass
class Database:
    """The committed messages of one conversation, oldest first."""

    drawn: int = 0
    committed: list[int] = field(default_factory=list)

    def draw(self, rng: random.Random) -> int:
        self.drawn += rng.randint(1, 3)
        return self.drawn

    def commit(self, number: int) -> int | None:
        """Commit a message and return the newest one committed before."""
        tail = self.committed[-1] if self.committed else None
        insort(self.committed, number)
        return tail

    def newest(self, limit: int) -> list[dict[str, Any]]:
        return [message(number) for number in self.committed[-limit:]]


def message(number: int) -> dict[str, Any]:
    return {"id": f"m{number}", "sequence_id": number, "text": "x" * 200}


@dataclass
class Findings:
    """Results of a run. `holes` and `missing` must be 0."""

    reads: int = 0
    from_cache: int = 0
    appended: int = 0
    holes: int = 0
    missing: int = 0
    disordered: int = 0

    @property
    def hit_rate(self) -> float:
        return self.from_cache / max(1, self.reads)


class Fuzz:
    """
    Args:
        caches: what stand for processes; writers and readers are spread over them.
        client: a plain client for accidents: it evicts one of a window's keys.
        think_s: longest pause of a writer between two messages.
        flush_every_s: instead of random accidents, all keys of the server go this often.
    """

    def __init__(
        self,
        caches: list[Cache],
        client: Any,
        seed: int,
        *,
        think_s: float = 0.12,
        flush_every_s: float | None = None,
    ) -> None:
        self.caches = caches
        self.client = client
        self.rng = random.Random(seed)
        self.database = Database()
        self.acknowledged: list[int] = []
        self.findings = Findings()
        self._think_s = think_s
        self._flush_every_s = flush_every_s
        self._ending = False

    async def run(
        self, seconds: float, *, writers: int = 6, readers: int = 8, least_reads: float = 0
    ) -> Findings:
        """Run that long, and on until there are so many reads: a busy machine takes longer."""
        count = len(self.caches)
        tasks = [self._write(self.caches[i % count]) for i in range(writers)]
        tasks += [self._read(self.caches[i % count]) for i in range(readers)]
        accidents = self._have_accidents() if self._flush_every_s is None else self._flush()
        tasks += [accidents, self._end(seconds, least_reads)]
        await asyncio.gather(*tasks)
        return self.findings

    async def _end(self, seconds: float, least_reads: float) -> None:
        async def enough() -> bool:
            return self.findings.reads >= least_reads

        try:
            await asyncio.sleep(seconds)
            await eventually(enough, deadline_s=60)
        finally:
            self._ending = True

    async def _write(self, cache: Cache) -> None:
        rng = self.rng
        while not self._ending:
            await asyncio.sleep(rng.uniform(0, self._think_s))
            number = self.database.draw(rng)
            await asyncio.sleep(rng.uniform(0, _TRANSACTION_S))
            after = self.database.commit(number)
            await asyncio.sleep(rng.uniform(0, _TRANSACTION_S / 4))
            await cache.messages.append(AGENT, [message(number)], after=after)
            self.findings.appended += 1
            insort(self.acknowledged, number)

    async def _read(self, cache: Cache) -> None:
        rng = self.rng
        loads = 0

        async def load() -> list[dict[str, Any]]:
            nonlocal loads
            loads += 1
            await asyncio.sleep(rng.uniform(0, _TRANSACTION_S))
            rows = self.database.newest(_LIMIT)
            await asyncio.sleep(rng.uniform(0, _TRANSACTION_S))
            return rows

        while not self._ending:
            await asyncio.sleep(rng.uniform(0, _READ_EVERY_S))
            known = list(self.acknowledged)
            before = loads
            if rng.random() < 0.5:
                page = await cache.messages.get_or_load(AGENT, load, limit=_LIMIT)
                hit = loads == before
            else:
                found = await cache.messages.list(AGENT, limit=_LIMIT)
                hit, page = found is not None, found or []
            self.findings.reads += 1
            self.findings.from_cache += hit
            if hit or page:
                self._decider([row["sequence_id"] for row in page], known)

    def _decider(self, page: list[int], known: list[int]) -> None:
        findings = self.findings
        if page != sorted(set(page), reverse=True):
            findings.disordered += 1
        reaches = page[-1] if len(page) >= _LIMIT else -1
        lacking = {number for number in known if number > reaches} - set(page)
        newest = page[0] if page else -1
        findings.holes += any(number < newest for number in lacking)
        findings.missing += any(number > newest for number in lacking)

    async def _flush(self) -> None:
        while not self._ending:
            await asyncio.sleep(self._flush_every_s or 0)
            await self.client.flushall()

    async def _have_accidents(self) -> None:
        rng, keys = self.rng, self.caches[0].components.keys
        version, window = keys.windows(AGENT), keys.window(AGENT, "default")
        state, aside = version + ":state:default", keys.aside(AGENT, "default")
        due = 0.0
        while not self._ending:
            await asyncio.sleep(_READ_EVERY_S)
            if self.findings.reads < due:
                continue
            due = self.findings.reads + rng.uniform(0, 2 * _READS_PER_ACCIDENT)
            accident = rng.randrange(5)
            if accident == 0:
                await self.client.unlink(window)
            elif accident == 1:
                await self.client.unlink(version)
            elif accident == 2:
                await self.client.unlink(state)
            elif accident == 3:
                await self.client.unlink(aside)
            else:
                await rng.choice(self.caches).messages.invalidate(AGENT)
