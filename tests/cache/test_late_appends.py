"""An append that the server runs late brings no deleted message back, and no window lacks one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from cache import Cache
from cache.coherence.clock import Clock, boot_clock
from cache.connection import scripts
from cache.connection.pool import PoolOptions, open_pool
from tests.support.caches import PATIENT_S, Loader, cache_on
from tests.support.clusters import cluster
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.lua_rules import remove_rule
from tests.support.wait import eventually

BOTH = pytest.mark.parametrize("rule", [True, False], ids=["with the rule", "without"])
# Of a cache that meets silence: a busy server that answers is never so late.
TIMEOUT_S = 0.5
ROUNDS, STEPS, PAGE = 50, 40, 5


def _messages(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"m{number}", "sequence_id": number} for number in numbers]


def _numbers(page: Any) -> list[int] | None:
    return None if page is None else [row["sequence_id"] for row in page]


@dataclass
class Place:
    """A server that one process reaches through a proxy, and all others directly."""

    proxy: FaultProxy
    cut: str  # URL through the proxy
    free: str
    prefix: str
    agent: str
    server: Redis


@asynccontextmanager
async def one_server(url: str, prefix: str) -> AsyncIterator[Place]:
    async with (
        fault_proxy(url.removeprefix("unix://")) as proxy,
        open_pool(url, PoolOptions(connect_timeout_s=PATIENT_S), name="watcher") as server,
    ):
        yield Place(proxy, proxy.url, url, prefix, "a1", server)


@asynccontextmanager
async def a_cluster(home: Path) -> AsyncIterator[Place]:
    async with cluster(home) as nodes:
        node = nodes.nodes[0]
        async with fault_proxy(str(node.port)) as proxy:
            await node.ask("CONFIG", "SET", "cluster-announce-port", proxy.port)
            seed, agent = f"redis+cluster://127.0.0.1:{proxy.port}", nodes.agents_on(node, 1)[0]
            yield Place(proxy, seed, nodes.url, "lc:", agent, node.client)


async def _connections(place: Place) -> set[str]:
    return {client["id"] for client in await place.server.client_list()}


async def _page_after_a_late_append(place: Place, how: str) -> list[int] | None:
    """4 is appended, which times out; it is deleted, and the window loaded; then 4 arrives."""
    agent = place.agent
    async with cache_on(place.cut, place.prefix, timeout_s=TIMEOUT_S) as cut:
        await cut.messages.get_or_load(agent, Loader(_messages(1, 2)))
        assert await cut.messages.append(agent, _messages(3), after=2)
        before = await _connections(place)
        late = place.proxy.detain()
        assert not await cut.messages.append(agent, _messages(4), after=3)
        async with asyncio.timeout(30):
            await cut.settled()
        async with cache_on(place.free, place.prefix) as free:
            if how == "invalidate":
                assert await free.messages.invalidate(agent, conversation="default")
            else:
                async with free.writing(conversations=[(agent, "default")]) as token:
                    assert token.holds
            await free.messages.get_or_load(agent, Loader(_messages(1, 2, 3)))
            late.set()
            # The server ends the connection when it has run what came by it.
            await eventually(lambda: _ended(place, before))
            return _numbers(await free.messages.list(agent, limit=9))


async def _ended(place: Place, before: set[str]) -> bool:
    return not before <= await _connections(place)


@pytest.mark.faults
@BOTH
@pytest.mark.parametrize("how", ["invalidate", "writing"])
async def test_an_append_that_was_held_back_adds_nothing(
    valkey_url: str, prefix: str, how: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:
        remove_rule(monkeypatch, "messages_append", "loaded_since")
    async with one_server(valkey_url, prefix) as place:
        page = await _page_after_a_late_append(place, how)
    assert page == ([3, 2, 1] if rule else [4, 3, 2, 1])


@pytest.mark.faults
async def test_an_append_held_back_from_a_cluster_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_cluster(tmp_path) as place:
        assert await _page_after_a_late_append(place, "invalidate") == [3, 2, 1]
        assert await _page_after_a_late_append(place, "writing") == [3, 2, 1]
        remove_rule(monkeypatch, "messages_append", "loaded_since")
        assert await _page_after_a_late_append(place, "invalidate") == [4, 3, 2, 1]


class HoldingConnection:
    """Between a cache and the server: keeps copies of its appends, and can hold one back."""

    def __init__(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = cache.components.entries.connection.unguarded
        self._evalsha: Callable[..., Any] = self.server.evalsha
        self._append = scripts.load("cache", "messages_append", ".coherence").sha
        self.copies: list[tuple[Any, ...]] = []
        self.gate: asyncio.Event | None = None  # of the next append
        self.waits = asyncio.Event()
        monkeypatch.setattr(self.server, "evalsha", self._send)

    async def _send(self, sha: str, *args: Any) -> Any:
        if sha == self._append:
            self.copies.append((sha, *args))
            gate, self.gate = self.gate, None
            if gate is not None:
                self.waits.set()
                await gate.wait()
        return await self._evalsha(sha, *args)

    async def repeat(self, rng: random.Random) -> None:
        if self.copies:
            await self._evalsha(*rng.choice(self.copies))


@dataclass
class ConversationAgainstDatabase:
    """One conversation, two processes. Appends and loads are on the way while other steps happen."""

    caches: tuple[Cache, Cache]
    connections: tuple[HoldingConnection, HoldingConnection]
    agent: str
    rng: random.Random
    drawn: int = 0
    rows: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)  # deleted, and everybody was told
    acknowledged: set[int] = field(default_factory=set)
    append: tuple[asyncio.Task[bool], asyncio.Event, int] | None = None
    load: tuple[asyncio.Task[Any], asyncio.Event] | None = None
    hits: int = 0

    async def step(self) -> None:
        rng = self.rng
        steps = (self.add, self.add, self.delete, self.load_on, self.load_on, self.look, self.look)
        await rng.choice((*steps, self.repeat))(rng.randrange(2))

    async def end(self) -> None:
        for one in (self.append, self.load):
            if one is not None:
                one[1].set()
                await one[0]

    async def add(self, number: int) -> None:
        if self.append is not None:
            task, gate, added = self.append
            self.append = None
            gate.set()
            await task
            self.acknowledged.add(added)
            return
        self.drawn += self.rng.randint(1, 2)
        after, added = self.rows[-1] if self.rows else None, self.drawn
        self.rows.append(added)
        call = self.caches[number].messages.append(self.agent, _messages(added), after=after)
        if self.rng.random() < 0.5:
            await call
            self.acknowledged.add(added)
            return
        connection, gate = self.connections[number], asyncio.Event()
        connection.gate = gate
        connection.waits.clear()
        self.append = asyncio.ensure_future(call), gate, added
        await connection.waits.wait()

    async def delete(self, number: int) -> None:
        if not self.rows:
            return
        cache, deleted = self.caches[number], self.rng.choice(self.rows)
        how = self.rng.randrange(3)
        if how == 0:
            async with cache.writing(conversations=[(self.agent, "default")]):
                self.rows.remove(deleted)
        else:
            self.rows.remove(deleted)
            conversation = "default" if how == 1 else None
            assert await cache.messages.invalidate(self.agent, conversation=conversation)
        self.gone.add(deleted)

    async def load_on(self, number: int) -> None:
        if self.load is not None:
            task, gate = self.load
            self.load = None
            gate.set()
            await task
            return
        started, gate = asyncio.Event(), asyncio.Event()
        reads_first = self.rng.random() < 0.5

        async def loader() -> list[dict[str, Any]]:
            rows = _messages(*self.rows)
            started.set()
            await gate.wait()
            return rows if reads_first else _messages(*self.rows)

        call = self.caches[number].messages.get_or_load(self.agent, loader, limit=PAGE)
        task = asyncio.ensure_future(call)
        starting = asyncio.ensure_future(started.wait())
        await asyncio.wait([task, starting], return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if not task.done():
            self.load = task, gate

    async def look(self, number: int) -> None:
        page = _numbers(await self.caches[number].messages.list(self.agent, limit=PAGE))
        if page is None:
            return
        self.hits += 1
        assert page == sorted(set(page), reverse=True)
        assert not self.gone & set(page), f"{page} has deleted ones of {self.gone}"
        reaches = page[-1] if len(page) == PAGE else 0
        lacking = {row for row in self.rows if row > reaches} - set(page)
        assert not lacking & self.acknowledged, f"{page} lacks some of {lacking}"

    async def repeat(self, number: int) -> None:
        await self.connections[number].repeat(self.rng)


@pytest.mark.property
@BOTH
async def test_late_copies_of_appends_against_a_model(
    valkey_url: str, prefix: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:
        remove_rule(monkeypatch, "messages_append", "loaded_since")
    hits, failures = 0, []
    async with cache_on(valkey_url, prefix) as one, cache_on(valkey_url, prefix) as two:
        for cache in (one, two):
            await cache.messages.get_or_load("known", Loader([]))
            await cache.messages.invalidate("known")
        connections = HoldingConnection(one, monkeypatch), HoldingConnection(two, monkeypatch)
        for seed in range(ROUNDS):
            for connection in connections:
                connection.copies.clear()
            model = ConversationAgainstDatabase(
                (one, two), connections, f"a{seed}", random.Random(seed)
            )
            for number in range(STEPS):
                try:
                    await model.step()
                except AssertionError as exc:
                    failures.append(f"seed {seed}, step {number}: {exc}")
                    break
            await model.end()
            hits += model.hits
        assert one.stats()["outages"] == two.stats()["outages"] == 0
    assert bool(failures) is not rule, failures
    assert hits > ROUNDS


@pytest.mark.integration
async def test_a_deletion_during_an_append_is_not_undone(
    valkey_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 is committed; another process deletes it while its append is on the way."""
    async with cache_on(valkey_url, prefix) as one, cache_on(valkey_url, prefix) as two:
        await one.messages.get_or_load("a1", Loader(_messages(1)))
        connection, gate = HoldingConnection(one, monkeypatch), asyncio.Event()
        connection.gate = gate
        appending = asyncio.create_task(one.messages.append("a1", _messages(2), after=1))
        await connection.waits.wait()
        assert await two.messages.invalidate("a1", conversation="default")
        await two.messages.get_or_load("a1", Loader(_messages(1)))
        gate.set()
        assert not await appending
        assert await two.messages.list("a1") is None
        assert one.stats()["windows_dropped"] == 1


@pytest.mark.integration
async def test_the_first_append_asks_for_the_servers_time(
    valkey_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cache_on(valkey_url, prefix) as one, cache_on(valkey_url, prefix) as two:
        await two.messages.get_or_load("a1", Loader(_messages(1)))
        connection = HoldingConnection(one, monkeypatch)
        for number, sent in ((2, 2), (3, 3), (4, 4)):
            assert await one.messages.append("a1", _messages(number), after=number - 1)
            assert len(connection.copies) == sent
        assert _numbers(await two.messages.list("a1")) == [4, 3, 2, 1]


@pytest.mark.unit
def test_a_time_that_a_server_has_passed_is_never_ahead_of_it() -> None:
    """Two clocks may differ by 2 % in their rates, in either direction."""
    clock, told_us, one_s = Clock(), 1_000_000_000, 1_000_000
    clock.learn(told_us, b"run")
    now = boot_clock()
    assert told_us + 97 * one_s < clock.passed_us(now + 100, b"run") < told_us + 98.1 * one_s
    assert told_us - 103 * one_s < clock.passed_us(now - 100, b"run") < told_us - 101.9 * one_s
    assert clock.passed_us(now + 100, b"another run") == 0
