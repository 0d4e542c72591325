"""
Every rule that keeps the cache true, taken away: then its race is lost.

Each test runs a race twice, as the code is and without the rule's line. A rule
whose absence nothing notices would be decoration.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cache import Cache, LocalOptions
from cache.coherence.entries import Entries
from cache.coherence.era import script_args
from cache.coherence.flight import Loaded
from cache.coherence.guarded import GuardedConnection
from cache.coherence.local import LocalLevel
from cache.coherence.membership import Membership, Silence
from cache.coherence.readthrough import ReadThrough
from cache.connection import scripts
from cache.connection.multiplexed import Away
from tests.support.caches import Loader, cache_on
from tests.support.outages import fragile_server
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

BOTH = pytest.mark.parametrize("rule", [True, False], ids=["with the rule", "without"])


@pytest.fixture
async def caches(valkey_url: str, prefix: str) -> AsyncIterator[tuple[Cache, Cache]]:
    async with cache_on(valkey_url, prefix) as one, cache_on(valkey_url, prefix) as two:
        yield one, two


def _without(name: str, line: str, instead: str) -> scripts.Script:
    home = "cache" if name.startswith("messages_") else "cache.coherence"
    source = scripts.load(home, name, "cache.coherence").source
    assert source.count(line) == 1
    return scripts.Script(name, source.replace(line, instead))


@BOTH
async def test_the_lease_check(caches: tuple[Cache, Cache], rule: bool) -> None:
    reader, writer = caches
    if not rule:
        line = "if not lease or string.sub(lease, 1, 8) ~= token then -- the lease check"
        lax = _without("fill", line, "if not lease then lease = token .. '0' end if false then")
        reader.components.entries._fill = lax
    loader = Loader("old")
    loader.hold()
    reading = asyncio.create_task(reader.agents.get_or_load("a1", loader))
    await loader.started.wait()
    await writer.agents.set("a1", "new")
    loader.go.set()
    await reading
    assert (await writer.agents.get("a1") == "new") is rule


@BOTH
async def test_the_floor_when_reading(
    caches: tuple[Cache, Cache], rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalidation takes the floor away; the value itself is still there."""
    reader, writer = caches
    if not rule:
        honest = Entries._trusts

        def credulous(
            self: Entries, stamp: Any, floor: Any, generation: bytes, mark: bytes | None
        ) -> bool:
            return honest(self, stamp, str(stamp.floor).encode(), generation, mark)

        monkeypatch.setattr(Entries, "_trusts", credulous)
    await reader.agents.set("a1", "old")
    await writer.agents.invalidate("a1")
    assert (await reader.agents.get("a1") is None) is rule


@BOTH
async def test_the_floor_when_storing(caches: tuple[Cache, Cache], rule: bool) -> None:
    """Who joined a load after the invalidation is told by the refused fill to start over."""
    reader, writer = caches
    if not rule:
        line = "if redis.call('GET', floor_key) ~= floor then -- the floor"
        reader.components.entries._fill = _without("fill", line, "if false then")
    loader = Loader("old")
    loader.hold()
    first = asyncio.create_task(reader.agents.get_or_load("a1", loader))
    await loader.started.wait()
    await writer.agents.invalidate("a1")
    late = asyncio.create_task(reader.agents.get_or_load("a1", Loader("new")))

    async def joined() -> bool:
        return reader.stats()["joined"] == 1

    await eventually(joined)
    loader.go.set()
    await first
    assert (await late == "new") is rule


@BOTH
async def test_a_floor_is_never_set_twice(caches: tuple[Cache, Cache], rule: bool) -> None:
    """A copy of the lease command, resent when its connection broke, arrives late."""
    reader, writer = caches
    entries = reader.components.entries
    if not rule:
        entries._lease = _without("lease", "floor = now_us", "floor = '1'")
    lease = await reader.agents.lease("a1")
    assert lease is not None
    await writer.agents.invalidate("a1")
    await entries.connection.run(entries._lease, lease.keys, (lease.token, 3000, "", "grant"))
    await reader.agents.fill("a1", "old", lease)
    assert (await writer.agents.get("a1") is None) is rule


def _messages(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"m{number}", "sequence_id": number} for number in numbers]


@BOTH
async def test_the_late_commit_rule(caches: tuple[Cache, Cache], rule: bool) -> None:
    """40 commits after 52; the window begins at 50, and 41 to 49 were never in it."""
    cache, _ = caches
    if not rule:
        line = "if tail ~= '' and tonumber(ARGV[5]) <= tonumber(tail) then -- the late-commit rule"
        cache.messages._append = _without("messages_append", line, "if false then")
    await cache.messages.get_or_load("a1", Loader(_messages(50, 51, 52)), limit=3)
    await cache.messages.append("a1", _messages(40), after=52)
    # What the mutant makes of the tail shows with the next message.
    await cache.messages.append("a1", _messages(53), after=40)
    page = await cache.messages.list("a1", limit=5)
    assert (page is None) is rule


@BOTH
async def test_the_predecessor_check(caches: tuple[Cache, Cache], rule: bool) -> None:
    """51 is committed, its append not yet here when that of 52 is."""
    cache, _ = caches
    if not rule:
        line = "if tail ~= ARGV[2] or (tail == '' and complete ~= '1') then"
        cache.messages._append = _without("messages_append", line, "if false then")
    await cache.messages.get_or_load("a1", Loader(_messages(50)), limit=1)
    await cache.messages.append("a1", _messages(52), after=51)
    page = await cache.messages.list("a1", limit=2)
    assert (page is None) is rule


@BOTH
async def test_an_append_takes_the_lease_away(caches: tuple[Cache, Cache], rule: bool) -> None:
    reader, writer = caches
    if not rule:
        writer.messages._append = _without("messages_append", "redis.call('UNLINK', KEYS[3])", "")
    loader = Loader(_messages(50))
    loader.hold()
    reading = asyncio.create_task(reader.messages.get_or_load("a1", loader, limit=1))
    await loader.started.wait()
    await writer.messages.append("a1", _messages(51), after=50)
    loader.go.set()
    await reading
    page = await writer.messages.list("a1", limit=1)
    assert (page is None) is rule


@BOTH
async def test_the_local_fence(
    valkey_url: str, prefix: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old value is on its way to this process while the invalidation is heard."""
    if not rule:
        honest = LocalLevel.invalidate

        def forgetful(self: LocalLevel, key: str) -> None:
            marks = dict(self._marks)
            honest(self, key)
            self._marks.update(marks)

        monkeypatch.setattr(LocalLevel, "invalidate", forgetful)
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
        heard = reader.components.backplane._last
        await writer.agents.invalidate("a1")
        await eventually(lambda: _moved(reader, heard))
        go.set()
        assert await reading == "old"  # asked before the write
        assert (await reader.agents.get("a1") is None) is rule


async def _quiet(cache: Cache) -> bool:
    events = await cache.components.backplane._client.xrevrange(
        cache.components.keys.backplane, count=1
    )
    return bool(events and events[0][0] == cache.components.backplane._last)


async def _moved(cache: Cache, before: bytes) -> bool:
    return cache.components.backplane._last != before


@BOTH
async def test_the_drain_rule(
    tmp_path: Path, prefix: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalidation was lost to an outage, and the server comes back with the old value."""

    async def nothing(self: GuardedConnection) -> None:
        self._missed.clear()

    if not rule:
        monkeypatch.setattr(GuardedConnection, "_drain", nothing)
    with fragile_server(tmp_path) as server:
        async with cache_on(server.url, prefix, timeout_s=0.04, member_lease_s=0) as cache:
            await cache.agents.set("a1", "old")
            server.freeze()
            # Told at once, so that nothing of it waits in the server's own buffers.
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
        fly = ReadThrough._fly

        async def sure(self: ReadThrough, *args: Any) -> Loaded:
            return Loaded((await fly(self, *args)).value, confirmed=True)

        monkeypatch.setattr(ReadThrough, "_fly", sure)
    loader = Loader("old")
    loader.hold()
    first = asyncio.create_task(reader.agents.get_or_load("a1", loader))
    await loader.started.wait()
    await writer.agents.invalidate("a1")
    late = asyncio.create_task(reader.agents.get_or_load("a1", Loader("new")))

    async def joined() -> bool:
        return reader.stats()["joined"] == 1

    await eventually(joined)
    loader.go.set()
    await first
    assert (await late == "new") is rule


@BOTH
async def test_the_dependencys_floor(caches: tuple[Cache, Cache], rule: bool) -> None:
    """The block changes after it was read and before the index knows who holds it."""
    reader, writer = caches
    if not rule:
        line = "if floor and tonumber(floor) >= tonumber(ARGV[2]) then"
        reader.components.invalidation._depend = _without("depend", line, "if false then")
    loader = Loader("old block")
    loader.hold()
    reading = asyncio.create_task(reader.agents.get_or_load("a1", loader, depends_on=["block:b1"]))
    await loader.started.wait()
    await writer.agents.invalidate_dependency("block:b1")
    loader.go.set()
    await reading
    assert (await writer.agents.get("a1") is None) is rule


@BOTH
async def test_the_era_when_reading(
    caches: tuple[Cache, Cache], rule: bool, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    """A member fell silent: the server has ended the era."""
    reader, writer = caches
    if not rule:
        honest = Entries._trusts

        def credulous(
            self: Entries, stamp: Any, floor: Any, generation: bytes, mark: bytes | None
        ) -> bool:
            return honest(self, stamp, floor, generation, stamp.mark)

        monkeypatch.setattr(Entries, "_trusts", credulous)
    await writer.agents.set("a1", "old")
    await client.delete(reader.components.keys.era)
    assert (await reader.agents.get("a1") is None) is rule


@BOTH
async def test_the_era_when_storing(
    caches: tuple[Cache, Cache], rule: bool, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    """The era ended while one loaded; who joined him since must not be handed the old value."""
    reader, _ = caches
    if not rule:

        async def trusting(self: Entries, lease: Any, fill: Any) -> int:
            stored: int = await fill
            return stored

        monkeypatch.setattr(Entries, "confirm", trusting)
    loader = Loader("old")
    loader.hold()
    first = asyncio.create_task(reader.agents.get_or_load("a1", loader))
    await loader.started.wait()
    await client.delete(reader.components.keys.era)
    late = asyncio.create_task(reader.agents.get_or_load("a1", Loader("new")))

    async def joined() -> bool:
        return reader.stats()["joined"] == 1

    await eventually(joined)
    loader.go.set()
    await first
    assert (await late == "new") is rule


@BOTH
async def test_a_member_with_a_queue_is_silent(
    valkey_url: str, prefix: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:

        def noisy(self: Membership) -> Silence:
            return Silence(True, self._over_at)

        monkeypatch.setattr(Membership, "hold", noisy)
    async with (
        cache_on(valkey_url, prefix) as reader,
        cache_on(valkey_url, prefix, member_lease_s=2.0) as writer,
    ):
        await reader.agents.set("a1", "old")
        membership = writer.components.invalidation._membership
        silence = membership.hold()
        assert silence.covers

        async def over() -> bool:
            return membership.now() > silence.until

        await eventually(over)
        assert (await reader.agents.get("a1") is None) is rule


@BOTH
async def test_a_renewal_counts_from_what_its_sender_knew(
    caches: tuple[Cache, Cache], rule: bool, client: Any
) -> None:
    """A copy of the command arrives late; its sender reckons with the end of the first."""
    cache, _ = caches
    keys, unguarded = cache.components.keys, cache.components.entries.connection.unguarded
    script = scripts.load("cache.coherence", "era")
    if not rule:
        script = _without("era", "math.min(now_ms, tonumber(ARGV[4]))", "now_ms")
    membership = cache.components.invalidation._membership
    member, basis_ms = membership._member, membership._basis_ms
    how = {"member": member, "lease_ms": 30_000, "latest_ms": basis_ms}

    async def late() -> bool:
        args = script_args("renew", unguarded, keys.era, **how)  # type: ignore[arg-type]
        reply = await script.run(unguarded, [keys.members, keys.era], args)
        return bool(reply[1] > basis_ms + 5)

    await eventually(late)
    end = await client.zscore(keys.members, member)
    assert (end <= basis_ms + 30_000) is rule
