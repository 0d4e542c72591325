"""Defines the components of a cache, and the slot of one value of one agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cache.coherence.backplane import Backplane
from cache.coherence.batch import LoadBatch
from cache.coherence.dependencies import DependencyIndex
from cache.coherence.entries import Entries
from cache.coherence.intents import Intents
from cache.coherence.invalidation import Invalidation
from cache.coherence.local import Fence, LocalLevel
from cache.coherence.readthrough import ReadThrough
from cache.coherence.refills import Refills
from cache.coherence.results import Changed, Held, Intended, Lease, Reading
from cache.encoding.models import is_model
from cache.keys import CacheKeys, bounded_ttl_s, intents_of
from cache.names import checked_names
from cache.options import CacheOptions
from cache.room import Room
from cache.stats import Counters, PerAgent

if TYPE_CHECKING:
    from pydantic import BaseModel

Dependencies = Sequence[str] | Callable[[Any], Iterable[str]]


@dataclass(slots=True)
class Components:
    """The components of one cache. `Cache` composes them."""

    options: CacheOptions
    keys: CacheKeys
    entries: Entries
    flights: ReadThrough
    invalidation: Invalidation
    intents: Intents
    index: DependencyIndex
    backplane: Backplane
    local: LocalLevel | None
    counters: Counters
    per_agent: PerAgent
    refills: Refills
    room: Room


@dataclass(slots=True)
class ValueSlot:
    """One value of one agent, for the read-through."""

    components: Components
    agent_id: str
    key: str
    field: str
    organisation: str | None = None
    model: type[BaseModel] | None = None
    ttl_s: float | None = None
    keep_s: float = 0.0
    dependencies: Dependencies = ()
    batch: LoadBatch | None = None  # the call for many values that this one is part of
    counted: bool = True  # in the statistics
    recorded: Lease | None = None  # for which prepare has recorded the dependencies

    @property
    def name(self) -> str:
        return f"{self.key}\0{self.field}"

    @property
    def entry(self) -> str:
        return self.name

    def note(self, event: str, value: Any = None) -> None:
        """Count a "hit", "miss" or "load" of this agent."""
        if not self.counted:
            return
        counters, agent = self.components.counters, self.components.per_agent.of(self.agent_id)
        if event == "hit":
            counters.hits += 1
            agent.hits += 1
            counters.negative_hits += value is None
        elif event == "miss":
            counters.misses += 1
            agent.misses += 1
        else:
            agent.loads += 1

    def wait(self) -> None:
        if self.batch is not None:
            self.batch.decided(self.agent_id)

    def again(self) -> ValueSlot:
        return replace(self, counted=False, recorded=None)

    def learn(self, value: Any) -> None:
        if is_model(value):
            self.components.entries.envelopes.models.add(type(value))

    def copies(self, value: Any) -> Callable[[], Any]:
        return self.components.entries.envelopes.copies(value)

    def read(self) -> Awaitable[Reading]:
        """Read the value, and keep a local copy if there are any. Raises Away when awaited."""
        local, entries = self.components.local, self.components.entries
        reading = entries.read(self.key, self.field, model=self.model)
        return reading if local is None else self._keep(local, local.begin(self.key), reading)

    async def _keep(self, local: LocalLevel, fence: Fence, reads: Awaitable[Reading]) -> Reading:
        """Await a read, and copy its value unless the entry was invalidated meanwhile."""
        reading = await reads
        if reading.fresh and reading.stored is not None:
            stored, left_s = reading.stored, -reading.expired_s
            local.keep(
                self.key, self.field, fence, stored=stored, value=reading.value, left_s=left_s
            )
        return reading

    async def lease(self, seen: Reading, mode: str = "grant") -> Lease | Held | Changed | Intended:
        return await self.components.entries.lease(
            self.key, self.field, intents_of(self.key), seen.seen, mode=mode
        )

    async def prepare(self, lease: Lease) -> None:
        """On a cluster, record what the value depends on while its loader runs, if that is known."""
        if self.components.index.apart and not callable(self.dependencies):
            keep_s = bounded_ttl_s(self.keep_s)
            indexes, life_ms = self._indexes(), int((self._ttl_s() + keep_s) * 1000)
            if await self.components.index.record(self.agent_id, indexes, lease, life_ms):
                self.recorded = lease

    async def store(self, lease: Lease, value: Any, load_s: float = 0.0) -> int:
        options, entries = self.components.options, self.components.entries
        ttl_s = self._ttl_s() if value is not None else min(self._ttl_s(), options.negative_ttl_s)
        absent = self.batch is not None and self.agent_id in self.batch.absent
        if ttl_s <= 0 or absent:
            return -1
        envelope, life_ms = entries.seal(
            lease, value, ttl_s=ttl_s, keep_s=bounded_ttl_s(self.keep_s), load_s=load_s
        )
        if len(envelope) > options.max_value_bytes:
            self.components.counters.too_large += 1
            return -1
        if not await self.components.room.left(lease.key, len(envelope)):
            return -1
        index, indexes = self.components.index, self._indexes(value)
        recorded = self.recorded is lease and index.remembers(load_s)
        if index.apart and not recorded:
            recorded = await index.record(self.agent_id, indexes, lease, life_ms)
            if not recorded:
                self.components.counters.fills_refused += 1
                await entries.release(lease)
                return 0
        record = index.with_fill(self.agent_id, indexes, lease, life_ms)
        stored = await entries.fill(lease, envelope, life_ms, record)
        if stored == 2:
            self.components.backplane.wake(self.entry)
        return stored

    def _ttl_s(self) -> float:
        return bounded_ttl_s(self.components.options.ttl_s if self.ttl_s is None else self.ttl_s)

    def _indexes(self, value: Any = None) -> list[str]:
        """The indexes in which the agent is recorded with this value. Raises InvalidName."""
        names: Iterable[str] = ()
        if callable(self.dependencies):
            names = checked_names("depends_on", self.dependencies(value))
        elif self.dependencies:
            names = self.dependencies  # checked by checked_dependencies
        keys = self.components.keys
        indexes = [keys.dependency(name) for name in dict.fromkeys(names)]
        if self.organisation is not None:
            indexes.append(keys.organisation(self.organisation))
        return indexes
