"""An index with more agents than one script may forget: page by page, and nothing stale meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Cache, LocalOptions
from cache.coherence import invalidation
from cache.coherence.dependencies import listed
from tests.support.caches import Loader, cache_on
from tests.support.lua_rules import remove_rule

BLOCK = "block:b1"
AGENTS = [f"a{number}" for number in range(10)]
BOTH = pytest.mark.parametrize("rule", [True, False], ids=["with the rule", "without"])
Trio = Callable[..., AbstractAsyncContextManager[tuple[Cache, Cache, "Gate"]]]


class Gate:
    """Holds one call of the writer after so many pages, as if it had died there, until it may go on."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def listed(self, *args: Any) -> AsyncIterator[tuple[str, ...]]:
        passed = 0
        async for page in listed(*args):
            if passed == self._pages and not self.reached.is_set():
                self.reached.set()
                await self.go.wait()
            yield page
            passed += 1


@pytest.fixture
def opened(valkey_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Trio:
    """A writer that forgets three agents at once, a reader, and the gate of the writer."""

    @asynccontextmanager
    async def pair(pages: int = 99, **options: Any) -> AsyncIterator[tuple[Cache, Cache, Gate]]:
        gate = Gate(pages)
        monkeypatch.setattr(invalidation, "listed", gate.listed)
        async with (
            cache_on(valkey_url, prefix, **options) as writer,
            cache_on(valkey_url, prefix, **options) as reader,
        ):
            writer.components.invalidation.at_once = 3
            yield writer, reader, gate

    return pair


async def fill(cache: Cache, value: Any, *agents: str) -> None:
    for agent in agents or AGENTS:
        await cache.agents.get_or_load(agent, Loader(value), depends_on=[BLOCK])


@pytest.mark.integration
async def test_every_agent_of_a_long_index_is_forgotten(opened: Trio, client: Any) -> None:
    async with opened() as (writer, reader, _):
        await fill(reader, "old")
        assert await writer.agents.invalidate_dependency(BLOCK)
        assert await reader.agents.get_many(AGENTS) == {}
        assert not await client.exists(writer.components.keys.dependency(BLOCK))
        await fill(reader, "new")
        assert await writer.agents.invalidate_dependency(BLOCK)
        assert await reader.agents.get_many(AGENTS) == {}
        assert writer.stats()["index_lost"] == 0


@pytest.mark.integration
async def test_a_write_of_a_long_index_begins_and_ends(opened: Trio) -> None:
    async with opened() as (writer, reader, _):
        await fill(reader, "old")
        async with writer.writing(dependencies=[BLOCK]):
            assert await reader.agents.get_many(AGENTS) == {}
            await fill(reader, "old")
            assert await reader.agents.get_many(AGENTS) == {}
        await fill(reader, "new")
        assert await reader.agents.get_many(AGENTS) == dict.fromkeys(AGENTS, "new")


@pytest.mark.integration
async def test_two_writes_of_a_long_index_overlap(opened: Trio) -> None:
    """The end of one leaves the agents in the index, so that the other's end lifts its intents."""
    async with opened() as (writer, reader, _):
        await fill(reader, "old")
        first = await writer.begin_write(dependencies=[BLOCK])
        second = await writer.begin_write(dependencies=[BLOCK])
        assert await writer.end_write(first)
        await fill(reader, "old")
        assert await reader.agents.get_many(AGENTS) == {}
        assert await writer.end_write(second)
        await fill(reader, "new")
        assert await reader.agents.get_many(AGENTS) == dict.fromkeys(AGENTS, "new")


@BOTH
@pytest.mark.faults
async def test_nothing_new_depends_on_what_is_being_forgotten(
    opened: Trio, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that no page lists loads the old block after the first page, before the commit."""
    if not rule:
        remove_rule(monkeypatch, "forget", "index_intent")
    async with opened(pages=1) as (writer, reader, gate):
        await fill(reader, "old")
        beginning = asyncio.create_task(writer.begin_write(dependencies=[BLOCK]))
        await gate.reached.wait()
        await fill(reader, "old", "late")
        gate.go.set()
        await beginning
        assert (await reader.agents.get("late") is None) is rule


@BOTH
@pytest.mark.faults
async def test_what_is_recorded_since_stays_in_the_index(
    opened: Trio, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value is stored between two pages; the next invalidation has to find it."""
    if not rule:
        everything = "found = redis.call('ZRANGE', key, 0, ARGV[2] - 1)"
        remove_rule(monkeypatch, "prune", "recorded_since", instead=everything)
    async with opened(pages=1) as (writer, reader, gate):
        await fill(reader, "old")
        first = asyncio.create_task(writer.agents.invalidate_dependency(BLOCK))
        await gate.reached.wait()
        await fill(reader, "new", "a0")
        gate.go.set()
        assert await first
        assert await reader.agents.get("a0") == "new"
        await writer.agents.invalidate_dependency(BLOCK)
        assert (await reader.agents.get("a0") is None) is rule


@pytest.mark.faults
async def test_an_overflow_during_the_pages_is_remembered(opened: Trio) -> None:
    async with opened(pages=1, max_dependents=len(AGENTS)) as (writer, reader, gate):
        await fill(reader, "old")
        first = asyncio.create_task(writer.agents.invalidate_dependency(BLOCK))
        await gate.reached.wait()
        await fill(reader, "new", "not listed")
        gate.go.set()
        assert await first
        assert await reader.agents.get("not listed") == "new"
        assert await writer.agents.invalidate_dependency(BLOCK)
        assert await reader.agents.get("not listed") is None
        assert writer.stats()["index_lost"] == 1


@pytest.mark.faults
@pytest.mark.parametrize("pages", [0, 1, 2])
async def test_a_death_between_pages_leaves_nothing_stale(opened: Trio, pages: int) -> None:
    """A writer that dies in its beginning commits nothing; in its end, it has committed."""
    async with opened(pages=pages) as (writer, reader, gate):
        await fill(reader, "old")
        gate.go.set()
        token = await writer.begin_write(dependencies=[BLOCK])
        gate.reached.clear()
        gate.go.clear()
        ending = asyncio.create_task(writer.end_write(token))
        await gate.reached.wait()
        for agent in AGENTS * 2:
            answer = reader.agents.get_or_load(agent, Loader("new"), depends_on=[BLOCK])
            assert await answer == "new"
        gate.go.set()
        await ending


@pytest.mark.faults
async def test_the_rest_of_a_renewal_does_not_follow_the_end(opened: Trio) -> None:
    """A page of it would let the agents' intents stand again."""
    async with opened(pages=1) as (writer, reader, gate):
        await fill(reader, "old")
        gate.go.set()
        token = await writer.begin_write(dependencies=[BLOCK])
        gate.reached.clear()
        gate.go.clear()
        renewal = asyncio.create_task(writer.components.intents.renew())
        await gate.reached.wait()
        assert await writer.end_write(token)
        gate.go.set()
        await renewal
        await fill(reader, "new")
        assert await reader.agents.get_many(AGENTS) == dict.fromkeys(AGENTS, "new")


@pytest.mark.integration
async def test_every_copy_of_a_process_is_dropped(valkey_url: str, prefix: str) -> None:
    local = LocalOptions(ttl_s=60)
    async with cache_on(valkey_url, prefix, local=local) as cache:
        cache.components.invalidation.at_once = 3
        await fill(cache, "old")
        assert await cache.agents.invalidate_dependency(BLOCK)
        assert await cache.agents.get_many(AGENTS) == {}


class Index:
    """A sorted set that others change between two pages."""

    def __init__(self, scores: dict[bytes, int], changes: list[tuple[bytes, int | None]]) -> None:
        self.scores, self._changes = scores, changes

    async def execute(self, *words: Any) -> list[bytes]:
        _, _, low, high, _, _, start, count, _ = words
        least, most = float(low), float(high)
        rows = sorted((score, name) for name, score in self.scores.items())
        rows = [(score, name) for score, name in rows if least <= score <= most]
        if self._changes:
            name, moved = self._changes.pop()
            self.scores.pop(name, None)
            if moved is not None:
                self.scores[name] = moved
        found = rows[start : start + count]
        return [word for score, name in found for word in (name, b"%d" % score)]


NAMES = st.sampled_from([b"%d" % number for number in range(12)])


@pytest.mark.property
@settings(max_examples=50, deadline=None)
@given(
    scores=st.dictionaries(NAMES, st.integers(1, 5)),
    changes=st.lists(st.tuples(NAMES, st.none() | st.just(9))),
    most=st.integers(1, 4),
)
async def test_pages_list_what_stays_whatever_else_goes(
    scores: dict[bytes, int], changes: list[tuple[bytes, int | None]], most: int
) -> None:
    """Agents of one score, and agents that leave or move up between two pages."""
    moved = {name for name, _ in changes}
    stay = {name.decode() for name in scores if name not in moved}
    index: Any = Index(dict(scores), list(changes))
    found = [name async for page in listed(index, "index", b"5", most) for name in page]
    assert stay <= set(found)
