"""A process is cut off from a server that others reach, stopped or killed, while it writes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cache import Cache, CacheUnavailable
from tests.support.caches import Loader, cache_on
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

# What must happen before an intent lapses has time to spare on a busy machine.
TTL_S = 6.0
# Of a cache that meets silence: a busy server that answers is never so late.
TIMEOUT_S = 0.5
MESSAGE = {"id": "m1", "sequence_id": 1}


@pytest.fixture
async def proxy(valkey_url: str) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(valkey_url.removeprefix("unix://")) as proxy:
        yield proxy


@pytest.fixture
async def other(valkey_url: str, prefix: str) -> AsyncIterator[Cache]:
    """A process that always reaches the server."""
    async with cache_on(valkey_url, prefix) as cache:
        yield cache


@asynccontextmanager
async def behind(proxy: FaultProxy, prefix: str, **options: Any) -> AsyncIterator[Cache]:
    chosen = {"timeout_s": TIMEOUT_S, "intent_s": TTL_S, **options}
    async with cache_on(proxy.url, prefix, **chosen) as cache:
        yield cache
        proxy.refuse = False
        proxy.release()


def cut(proxy: FaultProxy, how: str) -> None:
    if how == "silence":
        proxy.hold()
    else:
        proxy.refuse = True
        proxy.reset()


async def _settled(cache: Cache) -> None:
    async with asyncio.timeout(30):
        await cache.settled()


async def _stored(cache: Cache, value: Any = "new") -> bool:
    """Whether a loaded value is kept again."""
    await cache.agents.get_or_load("a1", Loader(value))
    return await cache.agents.get("a1") is not None


@pytest.mark.parametrize("how", ["silence", "refusal"])
async def test_a_writer_cut_off_after_its_beginning_leaves_nothing_old(
    proxy: FaultProxy, other: Cache, prefix: str, how: str
) -> None:
    """The end cannot arrive, but the intent stands: until it lapses everybody loads."""
    async with behind(proxy, prefix) as cache:
        await other.agents.set("a1", "old")
        await other.agents.set("a2", "kept")
        token = await cache.begin_write(agents=["a1"])
        cut(proxy, how)
        assert token.holds  # right before the commit
        assert await cache.end_write(token) is True
        assert cache.stats()["invalidations_missed"] == 1
        assert await other.agents.get_or_load("a1", Loader("new")) == "new"
        assert await other.agents.get("a1") is None
        assert await other.agents.get("a2") == "kept"
        await eventually(lambda: _stored(other))
        assert await other.agents.get("a1") == "new"


async def test_an_intent_that_lapsed_before_its_end_is_no_promise(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        token = await cache.begin_write(agents=["a1"])
        proxy.hold()
        await eventually(lambda: _stored(other, "old"))
        assert not token.holds
        assert await cache.end_write(token) is False
        assert await other.agents.get("a1") == "old"
        proxy.release()
        await _settled(cache)
        assert await other.agents.get("a1") is None


async def test_cut_off_serve_lets_the_write_go_on(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        await other.agents.set("a1", "old")
        proxy.hold()
        async with cache.writing(agents=["a1"]) as token:
            assert not token.holds
        assert await cache.end_write(token) is False
        assert await other.agents.get("a1") == "old"  # the others know of nothing
        assert await cache.agents.get_or_load("a1", Loader("new")) == "new"
        proxy.release()
        await _settled(cache)
        assert await other.agents.get("a1") is None
        assert cache.stats()["intents_missed"] == 1


async def test_cut_off_refuse_stops_the_write(proxy: FaultProxy, other: Cache, prefix: str) -> None:
    async with behind(proxy, prefix, cut_off="refuse") as cache:
        await other.agents.set("a1", "old")
        proxy.hold()
        for _ in range(2):  # by its timeout, then at once
            with pytest.raises(CacheUnavailable, match="LETTA_CACHE_CUT_OFF"):
                async with cache.writing(agents=["a1"]):
                    raise AssertionError("the block must not run")
        assert await other.agents.get("a1") == "old"
        proxy.release()
        await _settled(cache)
        async with cache.writing(agents=["a1"]) as token:
            assert token.holds
        assert await _stored(other)


async def test_an_intent_whose_reply_was_lost_is_lifted(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix, intent_s=60, cut_off="refuse") as cache:
        await cache.begin_write(agents=["the script is known from here on"])
        proxy.cut_replies(2)  # a broken connection is tried once more
        with pytest.raises(CacheUnavailable):
            await cache.begin_write(agents=["a1"])
        await _settled(cache)
        assert await _stored(other)


async def test_invalidate_returns_false_at_once_when_it_is_not_delivered(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        await other.agents.get_or_load("a1", Loader("old"), depends_on=["block:b1"])
        await other.messages.get_or_load("a1", Loader([MESSAGE]))
        proxy.hold()
        loop = asyncio.get_running_loop()
        start = loop.time()
        done = [
            await cache.agents.invalidate("a1"),
            await cache.agents.invalidate_dependency("block:b1"),
            await cache.agents.invalidate_organisation("o1"),
            await cache.messages.invalidate("a1", conversation="default"),
            await cache.messages.append("a1", [{"id": "m2", "sequence_id": 2}], after=1),
            await cache.invalidate_everything(),
        ]
        assert done == [False] * 6
        # Only the first call waited, for its two tries; all would wait for twelve timeouts.
        assert loop.time() - start < 12 * TIMEOUT_S
        assert await other.agents.get("a1") == "old"
        proxy.release()
        await _settled(cache)
        assert await other.agents.get("a1") is None
        assert await other.messages.list("a1", limit=1) is None


async def test_a_long_write_renews_its_intent_after_a_cut(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        token = await cache.begin_write(agents=["a1"])
        first = token.stands_until
        proxy.reset()

        async def renewed() -> bool:
            return token.stands_until > first + TTL_S

        await eventually(renewed)
        assert token.holds
        assert not await _stored(other, "old")
        assert await cache.end_write(token)
        assert await _stored(other)


@asynccontextmanager
async def refused(valkey_url: str, prefix: str, client: Any) -> AsyncIterator[str]:
    """The URL of a user whose invalidations are refused."""
    user = prefix.strip(":")
    rules = ("on", "nopass", "~*", "&*", "+@all", "-unlink")
    await client.execute_command("ACL", "SETUSER", user, *rules)
    yield f"unix://{user}:x@{valkey_url.removeprefix('unix://')}"
    await client.execute_command("ACL", "DELUSER", user)


async def test_a_refused_invalidation_is_kept_until_it_is_accepted(
    valkey_url: str, other: Cache, prefix: str, client: Any
) -> None:
    async with refused(valkey_url, prefix, client) as url, cache_on(url, prefix) as cache:
        await other.agents.set("a1", "old")
        assert await cache.agents.invalidate("a1") is False
        token = await cache.begin_write(agents=["a1"])
        assert not token.holds
        assert await cache.end_write(token) is False
        await client.execute_command("ACL", "SETUSER", prefix.strip(":"), "+unlink")
        await _settled(cache)
        assert await other.agents.get("a1") is None


class Process:
    """The cache of another process (tests/support/writer.py), driven by lines of text."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self) -> str:
        assert self._process.stderr is not None
        async with asyncio.timeout(30):
            return (await self._process.stderr.readline()).decode().strip()

    async def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        return await self.says()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


@asynccontextmanager
async def process_of(url: str, prefix: str) -> AsyncIterator[Process]:
    words = ["-m", "tests.support.writer", url, prefix, str(TTL_S)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=pipe, stderr=pipe, stdout=asyncio.subprocess.DEVNULL
    )
    other = Process(process)
    try:
        assert await other.says() == "ready"
        yield other
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
async def test_a_killed_writer_costs_only_what_it_was_writing(
    valkey_url: str, other: Cache, prefix: str, number: signal.Signals
) -> None:
    async with process_of(valkey_url, prefix) as process:
        for name in ("a1", "a2"):
            await other.agents.set(name, "old")
        assert await process.ask("begin a1") == "True"
        process.send(number)  # between its commit and its end
        assert await other.agents.get("a1") is None
        assert await other.agents.get("a2") == "old"
        await eventually(lambda: _stored(other))
        assert await other.agents.get("a2") == "old"


async def test_a_writer_stopped_past_its_ttl_knows_that_it_no_longer_holds(
    valkey_url: str, other: Cache, prefix: str
) -> None:
    async with process_of(valkey_url, prefix) as process:
        assert await process.ask("begin a1") == "True"
        process.send(signal.SIGSTOP)
        await eventually(lambda: _stored(other, "old"))
        process.send(signal.SIGCONT)
        assert await process.ask("holds") in {"True", "False"}  # renewed already, or not yet
        assert await process.ask("end") == "True"
        assert await other.agents.get("a1") is None
        assert await _stored(other)
