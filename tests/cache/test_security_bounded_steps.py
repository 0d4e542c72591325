"""No script holds the cache's server for long, whatever has gathered there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from cache import Cache
from cache.keys import CACHE_ASIDE_APPENDS
from tests.support.bounded_steps import assert_short_steps
from tests.support.caches import Loader, cache_on

pytestmark = pytest.mark.integration

AGENTS = [f"agent-{number:032d}" for number in range(4000)]
NAME = "block:b1"


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


async def depend(client: Any, cache: Cache, index: str) -> None:
    """Let all agents have a version, and be listed as dependent."""
    keys = cache.components.keys
    async with client.pipeline(transaction=False) as pipe:
        for number, agent in enumerate(AGENTS):
            pipe.set(keys.agent(agent), number)
        await pipe.execute()
    for at in range(0, len(AGENTS), 1000):
        await client.zadd(index, dict.fromkeys(AGENTS[at : at + 1000], 1.0 + at))


async def test_thousands_of_dependents_are_forgotten_in_short_steps(
    cache: Cache, client: Any, prefix: str
) -> None:
    keys = cache.components.keys
    index = keys.dependency(NAME)

    async def prepare() -> None:
        await depend(client, cache, index)

    async def write() -> None:
        token = await cache.begin_write(dependencies=[NAME])
        assert token.holds
        assert await cache.end_write(token)

    async def invalidate() -> None:
        assert await cache.agents.invalidate_dependency(NAME)

    for act in (write, invalidate):
        await assert_short_steps(client, prefix, act, prepare)
        assert not await client.exists(index, *map(keys.agent, AGENTS))


async def test_many_named_agents_are_forgotten_in_short_steps(
    cache: Cache, client: Any, prefix: str
) -> None:
    async def write() -> None:
        async with cache.writing(agents=AGENTS[:2000], organisations=AGENTS[:200]):
            """Nothing: only its beginning and its end are measured."""

    await assert_short_steps(client, prefix, write)


def messages(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"m{number}", "sequence_id": number} for number in numbers]


async def test_many_appends_wait_and_fit_in_short_steps(
    cache: Cache, client: Any, prefix: str
) -> None:
    """Each names the one before it, and they arrive in the opposite order."""
    numbers = range(1, CACHE_ASIDE_APPENDS + 1)

    async def begin() -> None:
        await cache.messages.invalidate("a1")
        await cache.messages.get_or_load("a1", Loader(messages(1)), limit=1)

    async def append() -> None:
        for number in reversed(numbers[1:]):
            await cache.messages.append("a1", messages(number), after=number - 1)

    await assert_short_steps(client, prefix, append, begin)
    page = await cache.messages.list("a1", limit=50)
    assert page is not None
    assert [row["sequence_id"] for row in page] == list(reversed(numbers[-50:]))


async def test_the_longest_window_is_stored_in_a_short_step(
    cache: Cache, client: Any, prefix: str
) -> None:
    wide = Cache(client, replace(cache.options, message_window=1000))
    loader = Loader(messages(*range(1, 1001)))

    async def load() -> None:
        await wide.messages.invalidate("a1")
        await wide.messages.get_or_load("a1", loader, limit=1000)

    async with wide:
        await assert_short_steps(client, prefix, load)
        assert len(await wide.messages.list("a1", limit=1000) or ()) == 1000
