"""Values and windows of the largest sizes: they come back whole, and no script holds the server for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from cache import Cache
from cache.keys import CACHE_LARGE, CACHE_MOST_MESSAGE_BYTES
from tests.support.bounded_steps import assert_short_steps
from tests.support.caches import Loader, cache_on

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
LARGE = "x" * (CACHE_LARGE + 1)


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    # A busy machine takes seconds to encode and send so much.
    patient = {"lease_s": 120, "timeout_s": 60}
    options = {"max_value_bytes": 64 * MIB, "message_window": 1000, **patient}
    async with cache_on(valkey_url, prefix, **options) as cache:
        yield cache


def messages(size: int, *numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"m{n}", "sequence_id": n, "text": f"{n % 10}" * size} for n in numbers]


async def staged(client: Any, prefix: str) -> list[bytes]:
    return [key async for key in client.scan_iter(match=f"{prefix}*:staged:*", count=1000)]


# -- no script carries them ------------------------------------------------------------


async def test_a_value_of_64_mib_is_filled_in_short_steps(
    cache: Cache, client: Any, prefix: str
) -> None:
    value, ids = "y" * (64 * MIB - 4096), (f"a{n}" for n in count())

    async def fill() -> None:
        id_ = next(ids)
        assert await cache.agents.get_or_load(id_, Loader(value), depends_on=["b"]) == value
        assert await cache.agents.get(id_) == value
        assert await cache.agents.invalidate(id_)

    await assert_short_steps(client, prefix, fill)
    assert not await staged(client, prefix)


@pytest.mark.parametrize(
    ("number", "size"), [(24, MIB - 200), (1000, 10_000)], ids=["of 1 MiB", "many"]
)
async def test_a_large_window_is_filled_and_read_in_short_steps(
    cache: Cache, client: Any, prefix: str, number: int, size: int
) -> None:
    whole = messages(size, *range(1, number + 1))
    ids = (f"a{n}" for n in count())

    async def fill_and_read() -> None:
        id_ = next(ids)
        page = await cache.messages.get_or_load(id_, Loader(whole), limit=number)
        assert list(page) == whole[::-1]
        assert await cache.messages.list(id_, limit=number) == whole[::-1]
        assert await cache.messages.list(id_, before=number, limit=number - 1) == whole[-2::-1]
        assert await cache.messages.list(id_, before=f"m{number}", limit=2) == whole[-2:-4:-1]

    await assert_short_steps(client, prefix, fill_and_read)
    assert not await staged(client, prefix)


async def test_large_appends_are_made_in_short_steps(
    cache: Cache, client: Any, prefix: str
) -> None:
    added = messages(600_000, *range(2, 32))
    ids = (f"a{n}" for n in count())

    async def append() -> None:
        id_ = next(ids)
        await cache.messages.get_or_load(id_, Loader(messages(10, 1)), limit=5)
        assert await cache.messages.append(id_, added, after=1)
        assert await cache.messages.list(id_, limit=30) == added[::-1]

    await assert_short_steps(client, prefix, append)


# -- and they are as coherent as small ones --------------------------------------------


async def test_a_large_message_is_not_kept_in_a_window(cache: Cache) -> None:
    await cache.messages.get_or_load("a", Loader(messages(10, 1)), limit=5)
    assert not await cache.messages.append("a", messages(CACHE_MOST_MESSAGE_BYTES, 2), after=1)
    assert await cache.messages.list("a", limit=1) is None
    assert cache.stats()["too_large"] == 1


async def test_a_large_fill_after_an_invalidation_is_refused(
    cache: Cache, client: Any, prefix: str
) -> None:
    loader = Loader(LARGE)
    loader.hold()
    load = asyncio.create_task(cache.agents.get_or_load("a", loader))
    await loader.started.wait()
    assert await cache.agents.invalidate("a")
    loader.go.set()
    assert await load == LARGE
    assert await cache.agents.get("a") is None
    assert not await staged(client, prefix)


async def test_a_window_whose_messages_were_lost_on_the_way_is_not_stored(
    cache: Cache, client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the server has evicted them, or a replica that lacks them has taken over."""
    connection = cache.components.entries.connection

    def losing(call: Any) -> Any:
        async def called(*args: Any) -> Any:
            reply = await call(*args)
            for key in await staged(client, prefix):
                await client.delete(key)
            return reply

        return called

    for name in ("execute", "execute_many"):
        monkeypatch.setattr(connection, name, losing(getattr(connection, name)))
    whole = messages(100_000, *range(1, 9))
    assert list(await cache.messages.get_or_load("a", Loader(whole), limit=8)) == whole[::-1]
    assert await cache.messages.list("a", limit=8) is None
    assert await cache.agents.get_or_load("a", Loader(LARGE)) == LARGE
    assert await cache.agents.get("a") is None


async def test_a_large_page_that_changes_while_it_is_read_is_a_miss(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.messages.get_or_load("a", Loader(messages(200_000, *range(1, 9))), limit=8)
    connection = cache.components.entries.connection
    run, lists = connection.run, 0

    async def change(script: Any, *args: Any) -> Any:
        nonlocal lists
        lists += script.name == "messages_list"
        if lists == 2 and script.name == "messages_list":
            assert await cache.messages.append("a", messages(5, 9), after=8)
        return await run(script, *args)

    monkeypatch.setattr(connection, "run", change)
    assert await cache.messages.list("a", limit=8) is None
    assert lists == 2
    page = await cache.messages.list("a", limit=8)
    assert page is not None
    assert [row["sequence_id"] for row in page] == [9, 8, 7, 6, 5, 4, 3, 2]
