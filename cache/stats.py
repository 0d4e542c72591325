"""Counts what the cache does, in this process, since it was opened."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass, field

# Most agents with counters; the least recently used is dropped.
_MAX_AGENTS = 10_000


@dataclass(slots=True)
class Counters:
    """Counters of one open cache. docs/caching.md says what each means."""

    hits: int = 0
    misses: int = 0
    local_hits: int = 0
    negative_hits: int = 0
    stale_served: int = 0
    loads: int = 0
    load_errors: int = 0
    joined: int = 0
    waits: int = 0
    fills: int = 0
    fills_refused: int = 0
    early_refreshes: int = 0
    refills: int = 0
    invalidations: int = 0
    invalidations_deferred: int = 0
    intents: int = 0
    intents_missed: int = 0
    too_large: int = 0
    without_room: int = 0
    not_encodable: int = 0
    unreadable: int = 0
    untrusted: int = 0
    bypassed: int = 0
    refused: int = 0
    outages: int = 0
    window_hits: int = 0
    window_misses: int = 0
    message_hits: int = 0
    message_misses: int = 0
    appends: int = 0
    appends_aside: int = 0
    windows_dropped: int = 0
    index_lost: int = 0
    local_evictions: int = 0
    local_flushes: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(slots=True)
class AgentCounters:
    hits: int = 0
    misses: int = 0
    loads: int = 0


@dataclass(slots=True)
class PerAgent:
    """Hits, misses and loads of the most recently used agents."""

    _agents: OrderedDict[str, AgentCounters] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._agents)

    def of(self, agent_id: str) -> AgentCounters:
        counters = self._agents.get(agent_id)
        if counters is None:
            counters = self._agents[agent_id] = AgentCounters()
            if len(self._agents) > _MAX_AGENTS:
                self._agents.popitem(last=False)
        else:
            self._agents.move_to_end(agent_id)
        return counters
