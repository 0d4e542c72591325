"""The cache works at both ends of each of its settings: no script is refused by the server."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from cache.opening import cache_options
from settings import Settings, load_settings
from tests.support.caches import Loader, cache_on

pytestmark = pytest.mark.integration

# Of what this machine may need for a reply: the smallest is every call's outage.
OTHERS = {"cache_timeout_s"}
MESSAGES = [{"id": f"m{number}", "sequence_id": number} for number in range(1, 5)]


def ends() -> Iterator[tuple[str, Any]]:
    for name, field in Settings.model_fields.items():
        if name.startswith("cache_") and name not in OTHERS:
            for bound in field.metadata:
                least, most = getattr(bound, "ge", None), getattr(bound, "le", None)
                if hasattr(bound, "gt"):
                    yield name, math.nextafter(bound.gt, math.inf)
                elif least is not None or most is not None:
                    yield name, least if least is not None else most


@pytest.mark.parametrize(("name", "value"), list(ends()))
async def test_the_cache_works_at_the_ends_of_a_setting(
    valkey_url: str, prefix: str, name: str, value: Any
) -> None:
    options = cache_options(load_settings(**{name: value}))
    chosen = {key: getattr(options, key) for key in options.__slots__} | {"timeout_s": 5.0}
    async with cache_on(valkey_url, **(chosen | {"prefix": prefix})) as cache:
        await use(cache)
        assert cache.stats()["refused"] == 0
        assert cache.stats()["trusted"] == 1


async def use(cache: Any) -> None:
    """Call everything once; what is answered is right, whether it was kept or not."""
    agents, messages = cache.agents, cache.messages
    for value in ("first", None):
        names: dict[str, Any] = {"depends_on": ["block:b"], "organisation": "o"}
        assert await agents.get_or_load("a", Loader(value), **names) == value
        assert await agents.get("a", organisation="o") in (value, None)
        async with cache.writing(agents=["a"], dependencies=["block:b"], organisations=["o"]):
            assert await agents.get("a", organisation="o") is None
    await agents.set("a", "set")
    assert await agents.get("a") in ("set", None)
    assert await agents.invalidate_dependency("block:b")
    page = await messages.get_or_load("a", Loader(MESSAGES[:2]), limit=2)
    assert [row["sequence_id"] for row in page] == [2, 1]
    await messages.append("a", MESSAGES[3:], after=3)
    await messages.append("a", MESSAGES[2:3], after=2)
    page = await messages.list("a", limit=1)
    assert page is None or page[0]["sequence_id"] == 4
    assert await messages.invalidate("a")
    await agents.sessions.set("a", "s", {"x": 1})
    assert await agents.sessions.get("a", "s") in ({"x": 1}, None)


@pytest.mark.parametrize("ttl_s", [5e-324, 1e-9, 0.0, -1.0, 1e308, math.inf, math.nan])
async def test_the_ttl_of_a_call_is_bounded(valkey_url: str, prefix: str, ttl_s: float) -> None:
    async with cache_on(valkey_url, prefix) as cache:
        await cache.agents.set("a", "set", ttl_s=ttl_s)
        await cache.agents.sessions.set("a", "s", "set", ttl_s=ttl_s)
        hows: list[dict[str, Any]] = [{"ttl_s": ttl_s}, {"stale_if_error_s": ttl_s}]
        for number, how in enumerate(hows):
            loader: Any = Loader("x")
            await cache.agents.get_or_load(f"b{number}", loader, depends_on=["block:b"], **how)
        assert cache.stats()["refused"] == 0
        assert cache.stats()["trusted"] == 1
