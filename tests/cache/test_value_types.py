"""Cached values come back as they were given, or are not stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from cache import Cache, NotEncodable
from tests.support.caches import Loader, cache_on
from tests.support.values import CARRIED, REFUSED, Model, shape
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


class Undumpable(BaseModel):
    data: bytes = b"\xff"


async def test_every_cached_value_keeps_its_types(cache: Cache) -> None:
    agents, value = cache.agents, {"values": CARRIED}
    await agents.get_or_load("a1", Loader(value))
    await agents.set("a2", value)
    await agents.blocks.set("a1", "human", value)
    await agents.sessions.set("a1", "s1", value)
    message = {"id": "m1", "sequence_id": 1, **value}
    await cache.messages.get_or_load("a1", Loader([message]))
    for found in (
        await agents.get_or_load("a1", Loader("never")),
        await agents.get("a2"),
        await agents.blocks.get("a1", "human"),
        await agents.sessions.get("a1", "s1"),
    ):
        assert found == value
        assert shape(found) == shape(value)
    page = await cache.messages.list("a1", limit=1)
    assert page is not None
    assert shape(page[0]) == shape(message)


@pytest.mark.parametrize("value", [v for v, _ in REFUSED.values() if not isinstance(v, Model)])
async def test_a_value_that_would_change_is_returned_and_not_stored(
    cache: Cache, value: Any
) -> None:
    loader = Loader({"part": value})
    for calls in (1, 2):
        found = await cache.agents.get_or_load("a1", loader)
        assert type(found["part"]) is type(value)
        assert loader.calls == calls
    with pytest.raises(NotEncodable, match=r"the value\['part'\]"):
        await cache.agents.set("a1", {"part": value})
    with pytest.raises(NotEncodable):
        await cache.agents.sessions.set("a1", "s1", {"part": value})
    with pytest.raises(NotEncodable):
        await cache.messages.append("a1", [{"id": "m1", "sequence_id": 1, "x": value}], after=None)


class Text(str):  # noqa: SLOT000  (that it has a dict is the point)
    """Text that can hold more, and so be changed."""


@pytest.mark.parametrize("make", [lambda: {"part": {1j}}, Undumpable, lambda: Text("a")])
async def test_a_value_without_an_encoding_is_not_shared(
    cache: Cache, make: Callable[[], Any]
) -> None:
    started, go, loads = asyncio.Event(), asyncio.Event(), []

    async def load() -> Any:
        loads.append(value := make())
        started.set()
        await go.wait()
        return value

    async def all_wait() -> bool:
        return cache.stats()["joined"] == 3

    first = asyncio.create_task(cache.agents.get_or_load("a1", load))
    await started.wait()
    others = [asyncio.create_task(cache.agents.get_or_load("a1", load)) for _ in range(3)]
    await eventually(all_wait)
    go.set()
    found = [await task for task in (first, *others)]
    assert len({id(value) for value in found}) == len(loads) == 4


async def test_a_model_that_cannot_be_dumped_is_returned(cache: Cache) -> None:
    model = Undumpable()
    assert await cache.agents.get_or_load("a1", Loader(model)) == model
    assert cache.stats()["not_encodable"] == 1


async def test_a_read_has_the_type_that_the_loader_returns(cache: Cache) -> None:
    async def load() -> dict[str, int]:
        return {"n": 1}

    async def load_model() -> Model | None:
        return Model(x=1)

    agents = cache.agents
    for _ in range(2):
        assert assert_type(await agents.get_or_load("a1", load), dict[str, int])["n"] == 1
        found = await agents.get_or_load("a2", load_model, model=Model)
        assert assert_type(found, Model | None) == Model(x=1)
        block = await agents.blocks.get_or_load("a1", "human", load)
        assert assert_type(block, dict[str, int]) == {"n": 1}
