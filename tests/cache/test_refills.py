"""What this process has invalidated and was reading is loaded again in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest

from cache import Cache
from cache.coherence import refills
from tests.support.caches import Loader, cache_on
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


@pytest.fixture
async def other(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


async def _read(cache: Cache, agent: str, loader: Any, **how: Any) -> Any:
    return await cache.agents.get_or_load(agent, loader, refill=True, **how)


async def _refilled(cache: Cache, agent: str) -> None:
    async def found() -> bool:
        return await cache.agents.get(agent) is not None

    await eventually(found)


@pytest.mark.parametrize("how", ["invalidate", "a write", "a dependency"])
async def test_the_read_after_an_own_write_hits(cache: Cache, other: Cache, how: str) -> None:
    loader = Loader("old")
    await _read(cache, "a1", loader, depends_on=["block:b1"])
    loader.value = "new"
    if how == "invalidate":
        await cache.agents.invalidate("a1")
    else:
        names: dict[str, Any] = {"agents": ["a1"]}
        if how == "a dependency":
            names = {"dependencies": ["block:b1"]}
        async with cache.writing(**names):
            assert cache.stats()["refills"] == 0
    await _refilled(other, "a1")
    assert await other.agents.get("a1") == "new"
    assert loader.calls == 2
    before = cache.stats()["misses"]
    assert await _read(cache, "a1", loader) == "new"
    assert cache.stats()["misses"] == before
    assert loader.calls == 2
    # The refill itself is neither a hit nor a miss.
    assert cache.stats()["refills"] == 1
    assert cache.stats()["hits"] == 1


async def test_a_refill_that_is_not_wanted_now_is_left_out(cache: Cache) -> None:
    loader = Loader(1)
    wanted = False
    await cache.agents.get_or_load("a1", loader, refill=lambda: wanted)
    await cache.agents.invalidate("a1")
    assert cache.stats()["refills"] == 0
    wanted = True
    await cache.agents.invalidate("a1")
    await _refilled(cache, "a1")
    assert loader.calls == 2


async def test_every_scope_that_was_read_is_refilled(cache: Cache) -> None:
    await _read(cache, "a1", Loader(1))
    await _read(cache, "a1", Loader(2), scope="full")
    await cache.agents.get_or_load("a1", Loader(3), scope="without")
    await cache.agents.invalidate("a1")
    await _refilled(cache, "a1")

    async def full() -> bool:
        return bool(await cache.agents.get("a1", scope="full") == 2)

    await eventually(full)
    assert await cache.agents.get("a1", scope="without") is None


async def test_what_others_invalidate_is_not_refilled(cache: Cache, other: Cache) -> None:
    loader = Loader(1)
    await _read(cache, "a1", loader)
    await _read(cache, "marker", Loader(2))
    await other.agents.invalidate("a1")
    await cache.agents.invalidate("marker")
    await _refilled(cache, "marker")
    assert loader.calls == 1


async def test_what_nobody_reads_is_not_refilled_forever(cache: Cache) -> None:
    loader = Loader(1)
    await _read(cache, "a1", loader)
    for _ in range(5):
        await cache.agents.invalidate("a1")
        await _read(cache, "marker", Loader(2))
        await cache.agents.invalidate("marker")
        await _refilled(cache, "marker")  # queued later, so the other has ended or was not queued
    await eventually(lambda: _idle(cache))
    assert loader.calls == 1 + 3
    await _read(cache, "a1", loader)
    await cache.agents.invalidate("a1")
    await _refilled(cache, "a1")


async def _idle(cache: Cache) -> bool:
    return cache.components.refills.running == 0


async def test_the_least_recently_read_is_forgotten(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refills, "_MOST_KNOWN", 2)
    loaders = {agent: Loader(agent) for agent in ("a1", "a2", "a3")}
    for agent in ("a1", "a2", "a1", "a3"):
        await _read(cache, agent, loaders[agent])
    await cache.agents.invalidate(*loaders)
    await _refilled(cache, "a1")
    await _refilled(cache, "a3")
    assert loaders["a2"].calls == 1


async def test_few_refills_run_at_once(cache: Cache) -> None:
    running = most = 0
    go = asyncio.Event()
    go.set()

    async def load() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return "value"

    agents = [f"a{number}" for number in range(10)]
    for agent in agents:
        await _read(cache, agent, load)
    go.clear()
    most = 0
    await cache.agents.invalidate(*agents)
    await eventually(lambda: _loads(lambda: running == 2))
    # A request loads at once, beside the queue.
    request = asyncio.create_task(_read(cache, "a9", Loader("own")))
    assert await request == "own"
    go.set()
    for agent in agents:
        await _refilled(cache, agent)
    assert most == 2
    assert await cache.agents.get("a9") == "own"


async def _loads(enough: Any) -> bool:
    return bool(enough())


async def test_a_refill_that_is_overtaken_is_made_again(cache: Cache, other: Cache) -> None:
    loader = Loader("first")
    await _read(cache, "a1", loader)
    loader.value = "old"
    loader.hold()
    loader.started.clear()
    await cache.agents.invalidate("a1")
    await loader.started.wait()
    loader.value = "new"
    await cache.agents.invalidate("a1")
    loader.go.set()
    await _refilled(other, "a1")
    assert await other.agents.get("a1") == "new"


async def test_a_refill_runs_outside_of_the_writers_context(cache: Cache) -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def load() -> str:
        seen.append(request.get())
        return "value"

    request.set("reads")
    await _read(cache, "a1", load)
    request.set("writes")
    await cache.agents.invalidate("a1")
    await _refilled(cache, "a1")
    assert seen == ["reads", "none"]


async def test_a_failing_refill_is_dropped(cache: Cache) -> None:
    loader = Loader(1)
    await _read(cache, "a1", loader)
    await _read(cache, "marker", Loader(2))
    loader.value = LookupError()
    await cache.agents.invalidate("a1", "marker")
    await _refilled(cache, "marker")
    await eventually(lambda: _idle(cache))
    assert await cache.agents.get("a1") is None
    assert cache.stats()["load_errors"] == 1


async def test_closing_ends_running_refills(valkey_url: str, prefix: str) -> None:
    loader = Loader(1)
    async with cache_on(valkey_url, prefix) as cache:
        await _read(cache, "a1", loader)
        loader.hold()
        loader.started.clear()
        await cache.agents.invalidate("a1")
        await loader.started.wait()
    assert asyncio.all_tasks() == {asyncio.current_task()}
