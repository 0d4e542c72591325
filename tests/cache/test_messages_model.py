"""Two processes' messages by id at random: none is older than the newest change that has ended."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from cache import Cache, Lease, WriteToken
from tests.support.caches import cache_on

pytestmark = pytest.mark.property

ROUNDS, STEPS = 60, 40


@dataclass
class Put:
    """A writer that puts what it has committed: leases first, then commits, then puts."""

    leases: dict[str, Lease] | None = None
    value: int = 0


@dataclass
class MessageAgainstDatabase:
    """One message. Each step is one call of one caller, so those of different callers interleave."""

    caches: tuple[Cache, Cache]
    id: str
    rng: random.Random
    row: int = 0
    least: int = 0  # nothing older may be served
    refused: int = 0
    puts: tuple[Put, Put] = field(default_factory=lambda: (Put(), Put()))
    write: WriteToken | None = None
    written: bool = False

    async def step(self) -> None:
        reads, changes = (self.read, self.read_through), (self.write_on, self.invalidate)
        steps = (*reads, *reads, self.put, self.put, self.put, *changes)
        await self.rng.choice(steps)(self.rng.choice(self.caches))

    async def read(self, cache: Cache) -> None:
        found = await cache.messages.get_many([self.id], scope="o")
        assert self.least <= found.get(self.id, self.row) <= self.row

    async def read_through(self, cache: Cache) -> None:
        if any(put.leases for put in self.puts):
            return  # it would wait until the lease lapses

        async def load(ids: list[str]) -> dict[str, int]:
            return dict.fromkeys(ids, self.row)

        found = await cache.messages.get_or_load_many([self.id], load, scope="o")
        assert self.least <= found[self.id] <= self.row

    async def put(self, cache: Cache) -> None:
        put = self.rng.choice(self.puts)
        if put.leases is None:
            put.leases = await cache.messages.lease_many([self.id], scope="o")
        elif not put.value:
            self.row += 1
            put.value = self.row
        else:
            values = {self.id: put.value}
            stored = await cache.messages.put_many(values, scope="o", leases=put.leases)
            self.refused += not stored
            self.least = max(self.least, put.value)
            put.leases, put.value = None, 0

    async def write_on(self, cache: Cache) -> None:
        if self.write is None:
            self.write, self.written = await cache.begin_write(messages=[("o", self.id)]), False
        elif not self.written:
            assert self.write.holds
            self.row += 1
            self.least, self.written = self.row, True
        else:
            assert await cache.end_write(self.write)
            self.write = None

    async def invalidate(self, cache: Cache) -> None:
        self.row += 1
        assert await cache.messages.invalidate_ids(self.id, scope="o")
        self.least = self.row


async def test_no_message_is_older_than_a_change_that_has_ended(
    valkey_url: str, prefix: str
) -> None:
    async with cache_on(valkey_url, prefix) as one, cache_on(valkey_url, prefix) as two:
        refused = 0
        for seed in range(ROUNDS):
            model = MessageAgainstDatabase((one, two), f"m{seed}", random.Random(seed))
            for number in range(STEPS):
                try:
                    await model.step()
                except AssertionError as exc:
                    raise AssertionError(f"seed {seed}, step {number}: {exc}") from exc
            refused += model.refused
        assert refused > ROUNDS / 2
        assert one.stats()["message_hits"] + two.stats()["message_hits"] > ROUNDS / 2
