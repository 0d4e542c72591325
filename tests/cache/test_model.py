"""
Two processes' caches and a database at random: every answer is one that a database gave.

The model knows what each scope's value was when the newest invalidation of its agent returned, or
when it was committed in a write that had begun; nothing older may be served. A page must contain
every message whose append has returned.
"""

from __future__ import annotations

import asyncio
import uuid
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache import Cache, Lease, WriteToken
from cache.connection import embedded
from cache.keys import intents_of
from tests.support.caches import cache_on

pytestmark = pytest.mark.property

AGENTS = st.sampled_from(["a1", "a2"])
SCOPES = st.sampled_from(["", "full"])
WHO = st.sampled_from([0, 1])
ALL = "tag:all"  # both agents depend on it
LIMITS = st.sampled_from([1, 2, 3, 5])


@lru_cache(maxsize=1)
def _server() -> str:
    """One server for all examples. It ends with the process."""
    return embedded.acquire("embedded://")


class CacheAgainstDatabase(RuleBasedStateMachine):
    """Each step is one call. Leases and writes of different callers interleave."""

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.rows: dict[str, int] = {"a1": 0, "a2": 0}
        self.least: dict[str, int] = {"a1": 0, "a2": 0}  # nothing older may be served
        self.leases: list[tuple[str, str, Lease, int]] = []
        self.writes: list[tuple[tuple[str, ...], WriteToken]] = []
        self.messages: list[int] = []
        self.drawn = 0
        self.late: list[int] = []  # drawn, not committed
        prefix = f"p{uuid.uuid4().hex[:12]}:"
        self.contexts = [cache_on(_server(), prefix, message_window=4) for _ in range(2)]
        self.caches: list[Cache] = [self.run(c.__aenter__()) for c in self.contexts]
        self.caches[1].components.invalidation.at_once = 1  # it forgets an index in pages

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    @rule(who=WHO, agent=AGENTS, scope=SCOPES)
    def read_through(self, who: int, agent: str, scope: str) -> None:
        async def load() -> int:
            return self.rows[agent]

        call = self.caches[who].agents.get_or_load(
            agent, load, scope=scope, depends_on=[f"block:{agent}", ALL], refill=True
        )
        self.check(agent, self.run(call))

    @rule(who=WHO, scope=SCOPES)
    def read_many_through(self, who: int, scope: str) -> None:
        async def load(agents: list[str]) -> dict[str, int]:
            return {agent: self.rows[agent] for agent in agents}

        call = self.caches[who].agents.get_or_load_many(
            self.rows, load, scope=scope, depends_on=["block:a1", "block:a2", ALL]
        )
        found = self.run(call)
        assert found.keys() == self.rows.keys()
        for agent, value in found.items():
            self.check(agent, value)

    @rule(who=WHO, agent=AGENTS, scope=SCOPES)
    def read(self, who: int, agent: str, scope: str) -> None:
        found = self.run(self.caches[who].agents.get(agent, scope=scope))
        if found is not None:
            self.check(agent, found)

    @rule(who=WHO, agent=AGENTS, how=st.sampled_from(["agent", "block", ALL]))
    def begin_a_write(self, who: int, agent: str, how: str) -> None:
        begin = self.caches[who].begin_write
        agents: tuple[str, ...] = (agent,)
        if how == "agent":
            token = self.run(begin(agents=agents))
        elif how == "block":
            token = self.run(begin(dependencies=[f"block:{agent}"]))
        else:
            agents, token = ("a1", "a2"), self.run(begin(dependencies=[ALL]))
        self.writes.append((agents, token))

    @rule(data=st.data())
    def commit_in_a_write(self, data: st.DataObject) -> None:
        """From the commit on, although no call has followed it."""
        if self.writes:
            agents, token = data.draw(st.sampled_from(self.writes))
            assert token.holds
            for agent in agents:
                self.rows[agent] += 1
                self.least[agent] = self.rows[agent]

    @rule(who=WHO, data=st.data())
    def end_a_write(self, who: int, data: st.DataObject) -> None:
        if self.writes:
            index = data.draw(st.integers(0, len(self.writes) - 1))
            _, token = self.writes.pop(index)
            assert self.run(self.caches[who].end_write(token))

    @rule(who=WHO, data=st.data())
    def die_in_a_write(self, who: int, data: st.DataObject) -> None:
        """Its intent lapses at once, without another call."""
        if self.writes:
            index = data.draw(st.integers(0, len(self.writes) - 1))
            agents, token = self.writes.pop(index)
            cache, name = self.caches[who], token.change.token
            keys = [cache.components.keys.dependency(ALL)]
            for agent in agents:
                keys += [cache.components.keys.agent(agent)]
                keys += [cache.components.keys.dependency(f"block:{agent}")]
            for key in keys:
                seconds, us = self.run(cache.client.time())
                lapsed = {name: seconds * 1_000_000 + us}
                self.run(cache.client.zadd(intents_of(key), lapsed, xx=True))

    @rule(who=WHO)
    def delete_a_message_in_a_write(self, who: int) -> None:
        async def delete() -> None:
            async with self.caches[who].writing(conversations=[("a1", "default")]):
                del self.messages[-1:]

        self.run(delete())

    @rule(agent=AGENTS)
    def commit_without_invalidation_yet(self, agent: str) -> None:
        self.rows[agent] += 1

    @rule(who=WHO, agent=AGENTS)
    def invalidate(self, who: int, agent: str) -> None:
        committed = self.rows[agent]
        self.run(self.caches[who].agents.invalidate(agent))
        self.least[agent] = committed

    @rule(who=WHO)
    def invalidate_what_depends_on_all(self, who: int) -> None:
        committed = dict(self.rows)
        self.run(self.caches[who].agents.invalidate_dependency(ALL))
        self.least = committed

    @rule(who=WHO, agent=AGENTS, scope=SCOPES)
    def begin_a_load(self, who: int, agent: str, scope: str) -> None:
        lease = self.run(self.caches[who].agents.lease(agent, scope=scope))
        if lease is not None:
            self.leases.append((agent, scope, lease, self.rows[agent]))

    @rule(who=WHO, data=st.data())
    def end_a_load(self, who: int, data: st.DataObject) -> None:
        if self.leases:
            index = data.draw(st.integers(0, len(self.leases) - 1))
            agent, scope, lease, value = self.leases.pop(index)
            depends = [f"block:{agent}", ALL]
            call = self.caches[who].agents.fill(
                agent, value, lease, scope=scope, depends_on=depends
            )
            self.run(call)

    @rule(who=WHO, agent=AGENTS, scope=SCOPES)
    def write_through(self, who: int, agent: str, scope: str) -> None:
        self.rows[agent] += 1
        value, depends = self.rows[agent], [f"block:{agent}", ALL]
        call = self.caches[who].agents.set(agent, value, scope=scope, depends_on=depends)
        self.run(call)

    def check(self, agent: str, value: int) -> None:
        assert self.least[agent] <= value <= self.rows[agent]

    @rule(who=WHO, limit=LIMITS)
    def page_through(self, who: int, limit: int) -> None:
        async def load() -> list[dict[str, int]]:
            return self.rows_of_messages()[-limit:]

        page = self.run(self.caches[who].messages.get_or_load("a1", load, limit=limit))
        self.check_page(page, limit)

    @rule(who=WHO, limit=LIMITS)
    def page(self, who: int, limit: int) -> None:
        page = self.run(self.caches[who].messages.list("a1", limit=limit))
        if page is not None:
            self.check_page(page, limit)

    @rule(who=WHO, data=st.data(), limit=LIMITS)
    def page_before(self, who: int, data: st.DataObject, limit: int) -> None:
        if self.messages:
            before = data.draw(st.sampled_from(self.messages))
            page = self.run(self.caches[who].messages.list("a1", before=before, limit=limit))
            if page is not None:
                expected = [n for n in reversed(self.messages) if n < before][:limit]
                assert [row["sequence_id"] for row in page] == expected

    @rule(who=WHO, gap=st.integers(1, 3))
    def write_a_message(self, who: int, gap: int) -> None:
        self.drawn += gap
        self.commit(who, self.drawn)

    @rule(gap=st.integers(1, 3))
    def draw_a_message(self, gap: int) -> None:
        self.drawn += gap
        self.late.append(self.drawn)

    @rule(who=WHO)
    def commit_a_late_message(self, who: int) -> None:
        if self.late:
            self.commit(who, self.late.pop(0))

    @rule(who=WHO)
    def forget_messages(self, who: int) -> None:
        self.run(self.caches[who].messages.invalidate("a1"))

    def commit(self, who: int, number: int) -> None:
        after = self.messages[-1] if self.messages else None
        self.messages = sorted([*self.messages, number])
        added = [{"id": f"m{number}", "sequence_id": number}]
        self.run(self.caches[who].messages.append("a1", added, after=after))

    def rows_of_messages(self) -> list[dict[str, Any]]:
        return [{"id": f"m{number}", "sequence_id": number} for number in self.messages]

    def check_page(self, page: Any, limit: int) -> None:
        expected = list(reversed(self.messages))[:limit]
        assert [row["sequence_id"] for row in page] == expected

    @invariant()
    def trusted(self) -> None:
        if hasattr(self, "caches"):
            assert all(cache.stats()["trusted"] for cache in self.caches)

    def teardown(self) -> None:
        if hasattr(self, "caches"):
            for context in self.contexts:
                self.run(context.__aexit__(None, None, None))
            self.runner.close()


CacheAgainstDatabase.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)
TestCacheAgainstDatabase = CacheAgainstDatabase.TestCase
