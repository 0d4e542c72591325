"""No script holds the cache's server for long, whatever has gathered there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache import Cache
from tests.support.bounded_steps import assert_short_steps
from tests.support.caches import cache_on

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
