"""
Removes each rule that keeps stale values out, and shows that its race is then lost.

Each test runs a race twice: with the code as it is, and without the rule. A rule
whose absence no test notices could be deleted by mistake.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cache import Cache, LocalOptions, WriteToken
from cache.coherence import readthrough
from cache.coherence.entries import Entries
from cache.coherence.flight import Loaded
from cache.coherence.intents import Intents
from cache.coherence.local import LocalLevel
from cache.connection import scripts
from cache.connection.protocol import Away
from cache.keys import intents_of
from tests.support.caches import Loader, cache_on
from tests.support.lua_rules import remove_rule
from tests.support.outages import fragile_server
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

BOTH = pytest.mark.parametrize("rule", [True, False], ids=["with the rule", "without"])


Pair = Callable[[], AbstractAsyncContextManager[tuple[Cache, Cache]]]


@pytest.fixture
def pair(valkey_url: str, prefix: str) -> Pair:
    """Opens two caches of one prefix, after a test has removed its rule."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Cache, Cache]]:
        async with cache_on(valkey_url, prefix) as one, cache_on(valkey_url, prefix) as two:
            yield one, two

    return opened


@pytest.fixture
async def caches(pair: Pair) -> AsyncIterator[tuple[Cache, Cache]]:
    async with pair() as both:
        yield both


async def _late_answer(reader: Cache, invalidate: Callable[[], Awaitable[object]]) -> Any:
    """What a caller gets that joins a load after an invalidation; the load itself reads "old"."""
    loader = Loader("old")
    loader.hold()
    first = asyncio.create_task(reader.agents.get_or_load("a1", loader))
    await loader.started.wait()
    await invalidate()
    late = asyncio.create_task(reader.agents.get_or_load("a1", Loader("new")))

    async def joined() -> bool:
        return reader.stats()["joined"] == 1

    await eventually(joined)
    loader.go.set()
    await first
    return await late


@BOTH
async def test_only_the_lease_holder_stores(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:
        remove_rule(monkeypatch, "fill", "lease_holder")
    async with pair() as (reader, writer):
        loader = Loader("old")
        loader.hold()
        reading = asyncio.create_task(reader.agents.get_or_load("a1", loader))
        await loader.started.wait()
        await writer.agents.set("a1", "new")
        loader.go.set()
        await reading
        assert (await writer.agents.get("a1") == "new") is rule


@BOTH
async def test_a_read_compares_the_entry_version(
    caches: tuple[Cache, Cache], rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalidation deletes the version; the value itself is still there."""
    reader, writer = caches
    if not rule:
        honest = Entries.trusts

        def credulous(self: Entries, head: Any, version: Any, run: bytes) -> bool:
            return honest(self, head, str(head.version).encode(), run)

        monkeypatch.setattr(Entries, "trusts", credulous)
    await reader.agents.set("a1", "old")
    await writer.agents.invalidate("a1")
    assert (await reader.agents.get("a1") is None) is rule


@BOTH
async def test_a_fill_compares_the_entry_version(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that joined after the invalidation starts over because the fill is refused."""
    if not rule:
        remove_rule(monkeypatch, "fill", "entry_version")
    async with pair() as (reader, writer):
        answer = await _late_answer(reader, lambda: writer.agents.invalidate("a1"))
        assert (answer == "new") is rule


@BOTH
async def test_no_entry_version_is_used_twice(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the lease command, sent again when its connection broke, arrives late."""
    if not rule:
        remove_rule(monkeypatch, "lease", "new_version", instead="version = '1'")
    async with pair() as (reader, writer):
        lease = await reader.agents.lease("a1")
        assert lease is not None
        await writer.agents.invalidate("a1")
        script = scripts.load("cache.coherence", "lease")
        connection = reader.components.entries.connection
        keys = (*lease.keys, intents_of(lease.key))
        await connection.run(script, keys, (lease.token, 3000, "", "grant"))
        await reader.agents.fill("a1", "old", lease)
        assert (await writer.agents.get("a1") is None) is rule


def _messages(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"m{number}", "sequence_id": number} for number in numbers]


@BOTH
async def test_a_commit_before_the_window_is_not_put_into_it(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 commits after 52; the window begins at 50, and 41 to 49 were never in it."""
    if not rule:
        remove_rule(monkeypatch, "messages_append", "late_commit")
    async with pair() as (cache, _):
        await cache.messages.get_or_load("a1", Loader(_messages(50, 51, 52)), limit=3)
        await cache.messages.append("a1", _messages(40), after=52)
        await cache.messages.append("a1", _messages(53), after=40)
        page = await cache.messages.list("a1", limit=5)
        assert (page is None) is rule


@BOTH
async def test_a_window_that_lacks_a_message_does_not_answer(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """51 is committed, but the append of 52 arrives first."""
    if not rule:
        remove_rule(monkeypatch, "messages_append", "predecessor")
    async with pair() as (cache, _):
        await cache.messages.get_or_load("a1", Loader(_messages(50)), limit=1)
        await cache.messages.append("a1", _messages(52), after=51)
        page = await cache.messages.list("a1", limit=2)
        assert (page is None) is rule


@BOTH
async def test_an_append_joins_the_loads_that_run(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:
        remove_rule(monkeypatch, "messages_append", "append_joins_loads")
    async with pair() as (reader, writer):
        loader = Loader(_messages(50))
        loader.hold()
        reading = asyncio.create_task(reader.messages.get_or_load("a1", loader, limit=1))
        await loader.started.wait()
        await writer.messages.append("a1", _messages(51), after=50)
        loader.go.set()
        await reading
        page = await writer.messages.list("a1", limit=1)
        assert (page == _messages(51)) is rule


@BOTH
async def test_a_load_whose_appends_were_evicted_is_refused(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    if not rule:
        remove_rule(monkeypatch, "messages_fill", "aside_lost")
    async with pair() as (reader, writer):
        loader = Loader(_messages(50))
        loader.hold()
        reading = asyncio.create_task(reader.messages.get_or_load("a1", loader, limit=1))
        await loader.started.wait()
        await writer.messages.append("a1", _messages(51), after=50)
        await client.delete(reader.components.keys.aside("a1", "default"))
        loader.go.set()
        await reading
        assert (await writer.messages.list("a1", limit=1) is None) is rule


@BOTH
async def test_an_invalidated_read_is_not_copied(
    valkey_url: str, prefix: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old value is on its way to this process when the invalidation arrives."""
    if not rule:
        keep = LocalLevel.keep

        def unfenced(self: LocalLevel, key: str, field: str, _fence: Any, **how: Any) -> bool:
            return keep(self, key, field, self.begin(key), **how)

        monkeypatch.setattr(LocalLevel, "keep", unfenced)
    answered, go = asyncio.Event(), asyncio.Event()
    read = Entries.read

    async def slow(self: Entries, *args: Any, **how: Any) -> Any:
        reading = await read(self, *args, **how)
        answered.set()
        await go.wait()
        return reading

    async with (
        cache_on(valkey_url, prefix, local=LocalOptions(ttl_s=60)) as reader,
        cache_on(valkey_url, prefix) as writer,
    ):
        await writer.agents.set("a1", "old")
        await eventually(lambda: _quiet(reader))
        monkeypatch.setattr(Entries, "read", slow)
        reading = asyncio.create_task(reader.agents.get("a1"))
        await answered.wait()
        monkeypatch.setattr(Entries, "read", read)
        before = reader.components.backplane.position
        await writer.agents.invalidate("a1")
        await eventually(lambda: _moved(reader, before))
        go.set()
        assert await reading == "old"  # asked before the write
        assert (await reader.agents.get("a1") is None) is rule


async def _quiet(cache: Cache) -> bool:
    events = await cache.client.xrevrange(cache.components.keys.backplane, count=1)
    return bool(events and events[0][0] == cache.components.backplane.position)


async def _moved(cache: Cache, before: bytes) -> bool:
    return cache.components.backplane.position != before


@BOTH
async def test_missed_invalidations_are_delivered_before_trust_returns(
    tmp_path: Path, prefix: str, rule: bool
) -> None:
    """An outage swallowed an invalidation, and the server comes back with the old value."""

    async def deliver_nothing(_change: Any) -> None:
        """Report success to the recovery."""

    with fragile_server(tmp_path) as server:
        async with cache_on(server.url, prefix) as cache:
            await cache.agents.set("a1", "old")
            if not rule:
                cache.components.entries.connection.redo = deliver_nothing
            server.freeze()
            # Tripped before the call, so that no command waits in the server's socket buffer.
            cache.components.entries.connection.trip(Away("the test says so"))
            await cache.agents.invalidate("a1")
            server.thaw()
            async with asyncio.timeout(10):
                await cache.settled()
            assert (await cache.agents.get("a1") is None) is rule


@BOTH
async def test_late_joiners_start_over(
    caches: tuple[Cache, Cache], rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = caches
    if not rule:

        def confirmed(value: Any, confirmed: bool) -> Loaded:
            return Loaded(value, confirmed=True)

        monkeypatch.setattr(readthrough, "Loaded", confirmed)
    answer = await _late_answer(reader, lambda: writer.agents.invalidate("a1"))
    assert (answer == "new") is rule


@BOTH
@pytest.mark.parametrize("how", ["invalidated", "lapsed"])
async def test_a_changed_dependency_refuses_older_leases(
    pair: Pair, rule: bool, how: str, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    """The block changes after it was read, before the index lists the agent."""
    if not rule:
        remove_rule(monkeypatch, "fill", "dependency_version")
    async with pair() as (reader, writer):
        if how == "lapsed":
            token = await writer.begin_write(dependencies=["block:b1"])
        loader = Loader("old block")
        loader.hold()
        reading = asyncio.create_task(
            reader.agents.get_or_load("a1", loader, depends_on=["block:b1"])
        )
        await loader.started.wait()
        if how == "invalidated":
            await writer.agents.invalidate_dependency("block:b1")
        else:
            await _lapse(client, reader.components.keys.dependency("block:b1"), token)
        loader.go.set()
        await reading
        assert (await writer.agents.get("a1") is None) is rule


async def _lapse(client: Any, key: str, token: WriteToken) -> None:
    """End an intent as its TTL does when its process has died."""
    seconds, us = await client.time()
    lapsed = {token.change.token: seconds * 1_000_000 + us}
    assert await client.zadd(intents_of(key), lapsed, xx=True, ch=True)


def _meet_another_run(cache: Cache, run: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = cache.components.entries.connection.unguarded
    monkeypatch.setattr(connection, "incarnation_of", lambda _key: run)


@BOTH
async def test_a_read_compares_the_run_of_the_server(
    caches: tuple[Cache, Cache], rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart from a snapshot brought back a value and its version."""
    reader, writer = caches
    if not rule:

        def credulous(_self: Entries, head: Any, version: Any, _run: bytes) -> bool:
            return bool(b"%d" % head.version == version)

        monkeypatch.setattr(Entries, "trusts", credulous)
    _meet_another_run(writer, b"before!!", monkeypatch)
    await writer.agents.set("a1", "old")
    assert (await reader.agents.get("a1") is None) is rule


@BOTH
async def test_a_fill_on_another_run_of_the_server_confirms_nothing(
    caches: tuple[Cache, Cache], rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server restarted during a load; a caller that joined since must not get the old value."""
    reader, _ = caches
    if not rule:

        async def trusting(self: Entries, lease: Any, fill: Any) -> int:
            stored: int = await fill
            return stored

        monkeypatch.setattr(Entries, "confirm", trusting)

    async def restart() -> None:
        _meet_another_run(reader, b"another!", monkeypatch)

    assert (await _late_answer(reader, restart) == "new") is rule


@BOTH
async def test_the_beginning_of_a_write_refuses_running_loads(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:
        remove_rule(monkeypatch, "forget", "versions")
    async with pair() as (reader, writer):
        loader = Loader("old")
        loader.hold()
        reading = asyncio.create_task(reader.agents.get_or_load("a1", loader))
        await loader.started.wait()
        await writer.begin_write(agents=["a1"])
        loader.go.set()
        await reading
        assert (await writer.agents.get("a1") is None) is rule


@BOTH
async def test_nothing_is_leased_during_a_write(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    """A load from before the commit ends when the intent of the dead writer has lapsed."""
    if not rule:
        remove_rule(monkeypatch, "lease", "intent")
    async with pair() as (reader, writer):
        token = await writer.begin_write(agents=["a1"])
        loader = Loader("old")
        loader.hold()
        reading = asyncio.create_task(reader.agents.get_or_load("a1", loader))
        await loader.started.wait()
        await _lapse(client, reader.components.keys.agent("a1"), token)
        loader.go.set()
        await reading
        assert (await writer.agents.get("a1") is None) is rule


@BOTH
async def test_the_end_of_a_write_forgets_again(
    pair: Pair, rule: bool, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    """The server evicted the intent, so an old value was stored before the commit."""
    if not rule:
        remove_rule(monkeypatch, "forget", "versions")
    async with pair() as (reader, writer):
        token = await writer.begin_write(agents=["a1"])
        await client.delete(intents_of(reader.components.keys.agent("a1")))
        await reader.agents.get_or_load("a1", Loader("old"))
        await writer.end_write(token)
        assert (await reader.agents.get("a1") is None) is rule


@BOTH
async def test_a_long_write_renews_its_intent(
    valkey_url: str, prefix: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:

        async def forgetful(self: Intents) -> None:
            """Renew nothing."""

        monkeypatch.setattr(Intents, "renew", forgetful)
    # The longer one leaves a busy machine time to renew it.
    intent_s = 6 if rule else 2
    async with (
        cache_on(valkey_url, prefix, intent_s=intent_s) as writer,
        cache_on(valkey_url, prefix) as reader,
    ):
        token = await writer.begin_write(agents=["a1"])
        clock = writer.components.intents.now
        later = clock() + intent_s + 0.2

        async def past_its_ttl() -> bool:
            return clock() > later

        await eventually(past_its_ttl)
        assert token.holds is rule
        await reader.agents.get_or_load("a1", Loader("old"))
        assert (await reader.agents.get("a1") is None) is rule
