"""Windows of messages answer completely or not at all."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cache import Cache
from cache.connection.protocol import Ended
from cache.connection.scripts import load
from cache.keys import CACHE_ASIDE_APPENDS, CACHE_ASIDE_BYTES
from tests.support.caches import Loader, cache_on
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


def _messages(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"m{n}", "sequence_id": n, "text": f"text {n}"} for n in numbers]


@st.composite
def committed(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Messages with their predecessors, in the order of their commits, which is any."""
    numbers = draw(st.permutations(range(1, draw(st.integers(2, 8)))))
    newest = [max([0, *numbers[:place]]) for place in range(len(numbers))]
    return list(zip(numbers, newest, strict=True))


def _numbers(page: Any) -> list[int] | None:
    return None if page is None else [row["sequence_id"] for row in page]


@pytest.fixture
async def cache(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix, message_window=10) as cache:
        yield cache


@pytest.fixture
async def other(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(valkey_url, prefix, message_window=10) as cache:
        yield cache


async def test_a_missing_window_does_not_answer(cache: Cache) -> None:
    assert await cache.messages.list("a1") is None
    assert not await cache.messages.append("a1", _messages(1), after=None)
    assert await cache.messages.list("a1") is None


async def test_a_window_is_read_newest_first_in_any_process(cache: Cache, other: Cache) -> None:
    loader = Loader(_messages(5, 9, 7))
    assert _numbers(await cache.messages.get_or_load("a1", loader, limit=3)) == [9, 7, 5]
    assert _numbers(await other.messages.get_or_load("a1", loader, limit=3)) == [9, 7, 5]
    assert await other.messages.list("a1", limit=1) == _messages(9)
    assert loader.calls == 1


async def test_appends_follow_their_predecessor(cache: Cache, other: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(5)), limit=1)
    assert await other.messages.append("a1", _messages(8, 6), after=5)
    assert await cache.messages.append("a1", _messages(9), after=8)
    assert _numbers(await cache.messages.list("a1", limit=4)) == [9, 8, 6, 5]


async def test_an_append_waits_for_its_predecessor(cache: Cache, other: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(5)), limit=1)
    assert not await cache.messages.append("a1", _messages(9, 10), after=8)
    assert await cache.messages.list("a1", limit=1) is None
    assert await other.messages.append("a1", _messages(8), after=5)
    assert _numbers(await cache.messages.list("a1", limit=4)) == [10, 9, 8, 5]
    assert (cache.stats()["appends_aside"], cache.stats()["windows_dropped"]) == (1, 0)


async def test_a_late_commit_takes_its_place(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(5, 9)), limit=2)
    assert await cache.messages.append("a1", _messages(7), after=9)
    assert _numbers(await cache.messages.list("a1", limit=3)) == [9, 7, 5]


async def test_a_load_closes_a_gap(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(5)), limit=1)
    assert not await cache.messages.append("a1", _messages(9), after=8)
    await cache.messages.get_or_load("a1", Loader(_messages(5, 8, 9)), limit=2)
    assert await cache.messages.append("a1", _messages(8), after=5), "is there already"
    assert await cache.messages.append("a1", _messages(11), after=9)
    assert _numbers(await cache.messages.list("a1", limit=3)) == [11, 9, 8]


@given(appends=committed(), order=st.randoms())
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
async def test_appends_in_any_order_make_the_same_window(
    cache: Cache, appends: list[tuple[int, int]], order: Random
) -> None:
    agent = uuid.uuid4().hex
    await cache.messages.get_or_load(agent, Loader(_messages(0)), limit=1)
    order.shuffle(appends)
    acknowledged = {0}
    for number, after in appends:
        await cache.messages.append(agent, _messages(number), after=after)
        acknowledged.add(number)
        page = _numbers(await cache.messages.list(agent, limit=len(acknowledged)))
        assert page is None or set(page) == acknowledged
    everything = sorted(acknowledged, reverse=True)
    assert _numbers(await cache.messages.list(agent, limit=len(everything))) == everything


@pytest.mark.parametrize("later", [3, 9], ids=["in order", "with a gap"])
async def test_appends_during_a_load_join_its_window(
    cache: Cache, other: Cache, later: int
) -> None:
    loader = Loader(_messages(1))
    loader.hold()
    loading = asyncio.create_task(cache.messages.get_or_load("a1", loader, limit=1))
    await loader.started.wait()
    assert not await other.messages.append("a1", _messages(2), after=1)
    assert not await other.messages.append("a1", _messages(later), after=later - 1)
    loader.go.set()
    assert _numbers(await loading) == [1]
    page = _numbers(await other.messages.list("a1", limit=3))
    assert page == ([3, 2, 1] if later == 3 else None)
    assert await other.messages.append("a1", _messages(8), after=2)
    assert _numbers(await cache.messages.list("a1", limit=4)) == sorted([1, 2, 8, later])[::-1]


async def test_a_caller_after_an_append_is_not_given_the_load_before(
    cache: Cache, other: Cache
) -> None:
    loader = Loader(_messages(1))
    loader.hold()
    loading = asyncio.create_task(cache.messages.get_or_load("a1", loader, limit=1))
    await loader.started.wait()
    await other.messages.append("a1", _messages(2), after=1)
    joining = asyncio.create_task(cache.messages.get_or_load("a1", loader, limit=1))
    await eventually(lambda: _joined(cache))
    loader.go.set()
    assert (_numbers(await loading), _numbers(await joining)) == ([1], [2])
    assert loader.calls == 1


async def _joined(cache: Cache) -> bool:
    return cache.stats()["joined"] == 1


@pytest.mark.parametrize("loads", [True, False])
async def test_evicted_appends_are_noticed(cache: Cache, client: Any, loads: bool) -> None:
    loader = Loader(_messages(1))
    if loads:
        loader.hold()
    loading = asyncio.create_task(cache.messages.get_or_load("a1", loader, limit=1))
    await loader.started.wait()
    if not loads:
        await loading
    await cache.messages.append("a1", _messages(3), after=2)
    assert await client.delete(cache.components.keys.aside("a1", "default"))
    loader.go.set()
    await loading
    assert await cache.messages.list("a1", limit=1) is None
    await cache.messages.append("a1", _messages(2), after=1)
    assert await cache.messages.list("a1", limit=1) is None


async def test_large_or_many_appends_are_not_kept_aside(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(1)), limit=1)
    large = [{"id": "m", "sequence_id": 9, "text": "x" * CACHE_ASIDE_BYTES}]
    await cache.messages.append("a1", large, after=8)
    assert cache.stats()["windows_dropped"] == 1
    await cache.messages.get_or_load("a1", Loader(_messages(1)), limit=1)
    for number in range(10, 11 + CACHE_ASIDE_APPENDS):
        await cache.messages.append("a1", _messages(number), after=9)
    assert cache.stats()["windows_dropped"] == 2
    await cache.messages.get_or_load("a1", Loader(_messages(1)), limit=1)
    for number in (10, 11):
        half = [{"id": "m", "sequence_id": number, "text": "x" * (CACHE_ASIDE_BYTES // 2)}]
        await cache.messages.append("a1", half, after=9)
    assert cache.stats()["windows_dropped"] == 3
    assert not await cache.client.exists(cache.components.keys.aside("a1", "default"))


async def test_an_append_of_very_many_messages_drops_the_window(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(1)), limit=1)
    assert not await cache.messages.append("a1", _messages(*range(2, 1003)), after=1)
    assert await cache.messages.list("a1", limit=1) is None


async def test_an_append_that_arrives_twice_adds_once(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(5)), limit=1)
    for _ in range(2):
        assert await cache.messages.append("a1", _messages(6, 7), after=5)
    assert _numbers(await cache.messages.list("a1", limit=3)) == [7, 6, 5]


async def test_a_short_load_reaches_the_conversations_beginning(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(1, 2)), limit=5)
    assert _numbers(await cache.messages.list("a1", limit=9)) == [2, 1]
    assert await cache.messages.list("a1", before=1) == []


async def test_a_page_longer_than_the_window_is_not_answered(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(1, 2, 3)), limit=3)
    assert await cache.messages.list("a1", limit=4) is None
    longer = Loader(_messages(0, 1, 2, 3))
    assert _numbers(await cache.messages.get_or_load("a1", longer, limit=5)) == [3, 2, 1, 0]
    assert _numbers(await cache.messages.list("a1", limit=9)) == [3, 2, 1, 0]


async def test_an_empty_conversation_is_an_answer(cache: Cache) -> None:
    loader = Loader([])
    assert await cache.messages.get_or_load("a1", loader) == []
    assert await cache.messages.get_or_load("a1", loader) == []
    assert loader.calls == 1
    assert await cache.messages.append("a1", _messages(3), after=None)
    assert _numbers(await cache.messages.list("a1")) == [3]


async def test_a_trimmed_window_is_no_longer_complete(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader([]))
    for number in range(1, 16):
        assert await cache.messages.append("a1", _messages(number), after=number - 1 or None)
    assert _numbers(await cache.messages.list("a1", limit=10)) == list(range(15, 5, -1))
    assert await cache.messages.list("a1", limit=11) is None


async def test_pages_before_a_number_and_before_an_id(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(*range(1, 8))), limit=7)
    assert _numbers(await cache.messages.list("a1", before=5, limit=2)) == [4, 3]
    assert _numbers(await cache.messages.list("a1", before="m5", limit=2)) == [4, 3]
    assert await cache.messages.list("a1", before=3, limit=3) is None
    assert await cache.messages.list("a1", before="m3", limit=3) is None
    assert await cache.messages.list("a1", before="unknown", limit=1) is None


async def test_conversations_are_apart(cache: Cache) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(1)), limit=1)
    await cache.messages.get_or_load("a1", Loader(_messages(2)), limit=1, conversation="c2")
    await cache.messages.invalidate("a1", conversation="c2")
    assert _numbers(await cache.messages.list("a1", limit=1)) == [1]
    assert await cache.messages.list("a1", limit=1, conversation="c2") is None


async def test_invalidating_an_agent_forgets_every_conversation(cache: Cache, other: Cache) -> None:
    for conversation in ("default", "c2"):
        await cache.messages.get_or_load(
            "a1", Loader(_messages(1)), limit=1, conversation=conversation
        )
    await other.messages.invalidate("a1")
    for conversation in ("default", "c2"):
        assert await cache.messages.list("a1", limit=1, conversation=conversation) is None


@pytest.mark.parametrize("how", ["one", "all"])
async def test_a_load_from_before_a_change_is_not_stored(
    cache: Cache, other: Cache, how: str
) -> None:
    loader = Loader(_messages(1))
    loader.hold()
    loading = asyncio.create_task(cache.messages.get_or_load("a1", loader, limit=1))
    await loader.started.wait()
    if how == "one":
        await other.messages.invalidate("a1", conversation="default")
    else:
        await other.messages.invalidate("a1")
    loader.go.set()
    await loading
    assert await other.messages.list("a1", limit=1) is None


@pytest.mark.parametrize("how", ["one", "all"])
async def test_a_late_request_for_a_lease_brings_no_window_back(
    cache: Cache, other: Cache, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection ends; what was sent arrives after an invalidation, during the load."""
    await cache.messages.get_or_load("a1", Loader(_messages(1)), limit=1, conversation="c2")
    server, lease = cache.components.entries.connection.unguarded, load("cache.coherence", "lease")
    evalsha, late = server.evalsha, list[tuple[Any, ...]]()

    async def cut_off(sha: str, *args: Any) -> Any:
        if sha == lease.sha and not late:
            late.append(args)
            raise Ended("cut off")
        return await evalsha(sha, *args)

    async def loader() -> list[dict[str, Any]]:
        invalidated = {"one": "default", "all": None}[how]
        assert await other.messages.invalidate("a1", conversation=invalidated)
        assert (await evalsha(lease.sha, *late[0]))[0] == 1
        return _messages(1)

    monkeypatch.setattr(server, "evalsha", cut_off)
    assert _numbers(await cache.messages.get_or_load("a1", loader, limit=1)) == [1]
    await cache.settled()
    assert await other.messages.list("a1", limit=1) is None


async def test_a_partly_evicted_window_does_not_answer(cache: Cache, client: Any) -> None:
    keys = cache.components.keys
    version = keys.windows("a1")
    for victim in (version, version + ":state:default", keys.window("a1", "default")):
        await cache.messages.get_or_load("a1", Loader(_messages(1, 2)), limit=2)
        await client.delete(victim)
        assert await cache.messages.list("a1", limit=1) is None
        assert not await cache.messages.append("a1", _messages(3), after=2)
        assert await cache.messages.list("a1", limit=1) is None


async def test_a_window_with_a_foreign_member_does_not_answer(cache: Cache, client: Any) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(1, 2)), limit=2)
    window = cache.components.keys.window("a1", "default")
    await client.zremrangebyscore(window, 1, 1)
    await client.zadd(window, {b"garbage": 1})
    assert await cache.messages.list("a1", limit=2) is None


async def test_another_agents_window_does_not_answer(
    cache: Cache, client: Any, prefix: str
) -> None:
    await cache.messages.get_or_load("a1", Loader(_messages(1, 2)))
    await cache.messages.append("a1", _messages(3), after=2)
    assert _numbers(await cache.messages.list("a1", limit=3)) == [3, 2, 1]
    copied = 0
    async for key in client.scan_iter(match=f"{prefix}{{a1}}*"):
        copied += await client.copy(key, key.replace(b"{a1}", b"{a2}"))
    assert copied == 3
    before = cache.stats()["unreadable"]
    assert await cache.messages.list("a2", limit=3) is None
    assert cache.stats()["unreadable"] == before + 1


async def test_many_callers_share_one_loader(cache: Cache, other: Cache) -> None:
    loader = Loader(_messages(1, 2))
    calls = [
        c.messages.get_or_load("a1", loader, limit=2) for c in (cache, other) for _ in "x" * 20
    ]
    assert all(_numbers(page) == [2, 1] for page in await asyncio.gather(*calls))
    assert loader.calls == 1


async def test_callers_of_one_load_share_no_message(cache: Cache) -> None:
    rows = [{"id": "m1", "sequence_id": 1, "content": [{"text": "hello"}]}]
    loader = Loader(rows)
    loader.hold()
    calls = [asyncio.create_task(cache.messages.get_or_load("a1", loader)) for _ in range(2)]
    await loader.started.wait()
    loader.go.set()
    pages: list[Any] = [*await asyncio.gather(*calls), await cache.messages.list("a1"), rows]
    for page in pages:
        assert page is not None
        page[0]["content"][0]["text"] += "!"
        assert page[0]["content"] == [{"text": "hello!"}]


async def test_models_are_messages_too(cache: Cache) -> None:
    class Message(BaseModel):
        id: str
        sequence_id: int

    loader = Loader([Message(id="m1", sequence_id=1)])
    assert await cache.messages.get_or_load("a1", loader) == [{"id": "m1", "sequence_id": 1}]


async def test_an_oversized_message_is_returned_but_not_stored(
    valkey_url: str, prefix: str
) -> None:
    large = [{"id": "m", "sequence_id": 1, "text": "x" * 5000}]
    async with cache_on(valkey_url, prefix, max_value_bytes=1024) as cache:
        assert await cache.messages.get_or_load("a1", Loader(large)) == large
        assert await cache.messages.list("a1") is None
        await cache.messages.get_or_load("a1", Loader([]))
        assert not await cache.messages.append("a1", large, after=None)
        assert await cache.messages.list("a1") is None


async def test_messages_on_their_way_have_a_ttl_at_every_moment(
    cache: Cache, client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, ttls = cache.components.entries.connection.unguarded, list[int]()

    def looking(call: Any) -> Any:
        async def called(*args: Any) -> Any:
            reply = await call(*args)
            async for key in client.scan_iter(match=f"{prefix}*:staged:*"):
                ttls.append(await client.pttl(key))
            return reply

        return called

    for name in ("execute", "execute_many"):
        monkeypatch.setattr(server, name, looking(getattr(server, name)))
    rows = [dict(row, text="x" * CACHE_ASIDE_BYTES) for row in _messages(1, 2, 3)]
    await cache.messages.get_or_load("a1", Loader(rows), limit=3)
    assert len(ttls) > 1
    assert min(ttls) > 0
    assert _numbers(await cache.messages.list("a1", limit=3)) == [3, 2, 1]


@pytest.mark.parametrize("number", [None, -1, "7", 2**53, 1.5])
async def test_a_message_without_a_usable_sequence_id_is_refused(cache: Cache, number: Any) -> None:
    with pytest.raises(ValueError, match="sequence_id"):
        await cache.messages.append("a1", [{"id": "m", "sequence_id": number}], after=None)


async def test_a_limit_below_one_is_refused(cache: Cache) -> None:
    with pytest.raises(ValueError, match="limit"):
        await cache.messages.list("a1", limit=0)
