"""A process is cut off from a server that others reach: what it invalidates is not served."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cache import Cache
from cache.connection.pool import PoolOptions, open_pool
from tests.support.caches import Loader, cache_on
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.outages import FragileServer
from tests.support.servers import free_port
from tests.support.wait import eventually, eventually_sync

pytestmark = pytest.mark.faults

# Long enough for four renewals on a busy machine.
LEASE_S = 2.0
TIMEOUT_S = 0.04


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
async def behind(proxy: FaultProxy, prefix: str, lease_s: float = LEASE_S) -> AsyncIterator[Cache]:
    async with cache_on(proxy.url, prefix, timeout_s=TIMEOUT_S, member_lease_s=lease_s) as cache:
        yield cache
        proxy.refuse = False
        proxy.release()


def cut(proxy: FaultProxy, how: str) -> None:
    if how == "silence":
        proxy.hold()
    else:
        proxy.refuse = True
        proxy.reset()


@pytest.mark.parametrize("how", ["silence", "refusal"])
async def test_invalidate_returns_once_nothing_older_is_served(
    proxy: FaultProxy, other: Cache, prefix: str, how: str
) -> None:
    async with behind(proxy, prefix) as cache:
        await other.agents.set("a1", "old")
        await other.agents.set("a2", "old", organisation="o1")
        await other.messages.get_or_load("a1", Loader([{"id": "m1", "sequence_id": 1}]))
        cut(proxy, how)
        call = asyncio.create_task(cache.agents.invalidate("a1"))
        start = cache.components.invalidation._membership.now()
        assert await other.agents.get("a1") == "old"  # the server and the other know of nothing
        assert await call is True
        assert await other.agents.get("a1") is None
        assert await other.agents.get("a2", organisation="o1") is None
        assert await other.messages.list("a1", limit=1) is None
        assert cache.components.invalidation._membership.now() - start < 2 * LEASE_S

        # The others go on, under the next era.
        assert await other.agents.get_or_load("a1", Loader("new")) == "new"
        assert await other.agents.get("a1") == "new"


async def test_a_lost_append_returns_when_no_page_lacks_the_message(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        await other.messages.get_or_load("a1", Loader([{"id": "m1", "sequence_id": 1}]))
        proxy.hold()
        assert not await cache.messages.append("a1", [{"id": "m2", "sequence_id": 2}], after=1)
        assert await other.messages.list("a1", limit=1) is None


async def test_all_kinds_of_invalidation_wait_for_the_lease(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        await other.agents.get_or_load("a1", Loader("old"), depends_on=["block:b1"])
        proxy.hold()
        done = await asyncio.gather(
            cache.agents.invalidate_dependency("block:b1"),
            cache.agents.invalidate_organisation("o1"),
            cache.messages.invalidate("a1", conversation="default"),
            cache.invalidate_everything(),
        )
        assert list(done) == [True] * 4
        assert await other.agents.get("a1") is None


async def test_callers_after_a_write_do_not_get_an_older_load(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        loader = Loader("old")
        loader.hold()
        first = asyncio.create_task(other.agents.get_or_load("a1", loader))
        await loader.started.wait()
        proxy.hold()
        assert await cache.agents.invalidate("a1")
        late = asyncio.create_task(other.agents.get_or_load("a1", Loader("new")))

        async def joined() -> bool:
            return other.stats()["joined"] == 1

        await eventually(joined)
        loader.go.set()
        assert await first == "old"  # asked before the write
        assert await late == "new"


async def test_an_outage_longer_than_the_lease_returns_false(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        proxy.hold()
        assert await cache.agents.invalidate("a1") is True
        # The others have removed it, so it cannot invalidate what they store from now on.
        await other.agents.get_or_load("a1", Loader("old"))
        assert await cache.agents.invalidate("a1") is False
        assert await other.agents.get("a1") == "old"
        proxy.release()
        async with asyncio.timeout(10):
            await cache.settled()
        assert await other.agents.get("a1") is None

        # A member again: the next outage is covered.
        await other.agents.get_or_load("a1", Loader("old"))
        await _is_member(other, 2)
        proxy.hold()
        assert await cache.agents.invalidate("a1") is True
        assert await other.agents.get("a1") is None


async def _members(cache: Cache) -> dict[bytes, float]:
    found = await cache.client.zrange(cache.components.keys.members, 0, -1, withscores=True)
    return {name: score for name, score in found if name}


async def _is_member(cache: Cache, count: int) -> None:
    async def there() -> bool:
        return len(await _members(cache)) == count

    await eventually(there)


async def test_an_ended_proxy_is_not_taken_for_an_ended_server(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix) as cache:
        await other.agents.set("a1", "old")
        proxy.leave()
        assert await cache.agents.invalidate("a1") is True
        assert await other.agents.get("a1") is None


@pytest.mark.parametrize("how", ["tcp", "unix"])
async def test_an_ended_server_on_this_machine_is_not_waited_for(tmp_path: Path, how: str) -> None:
    port = free_port() if how == "tcp" else 0
    server = FragileServer(tmp_path, "--port", str(port))
    server.start()
    url = f"redis://127.0.0.1:{port}" if port else server.url
    try:
        async with cache_on(url, "lc:", member_lease_s=60) as cache, cache_on(url, "lc:") as other:
            await other.agents.set("a1", "old")
            server.kill()
            async with asyncio.timeout(10):
                assert await cache.agents.invalidate("a1") is True
            server.start()
            assert await other.agents.get_or_load("a1", Loader("new")) == "new"
            async with asyncio.timeout(10):
                await asyncio.gather(cache.settled(), other.settled())
            assert await other.agents.get_or_load("a1", Loader("new")) == "new"
    finally:
        server.end()


async def test_without_a_lease_invalidate_returns_false_at_once(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    async with behind(proxy, prefix, lease_s=0) as cache:
        await other.agents.set("a1", "old")
        assert len(await _members(other)) == 1
        proxy.hold()
        assert await cache.agents.invalidate("a1") is False
        assert await other.agents.get("a1") == "old"


@asynccontextmanager
async def refused(valkey_url: str, prefix: str, client: Any) -> AsyncIterator[str]:
    """The URL of a user whose invalidations are refused, although renewals would be accepted."""
    user = prefix.strip(":")
    rules = ("on", "nopass", "~*", "&*", "+@all", "-unlink")
    await client.execute_command("ACL", "SETUSER", user, *rules)
    yield f"unix://{user}:x@{valkey_url.removeprefix('unix://')}"
    await client.execute_command("ACL", "DELUSER", user)


async def test_refused_invalidations_stop_the_renewal(
    valkey_url: str, other: Cache, prefix: str, client: Any
) -> None:
    async with (
        refused(valkey_url, prefix, client) as url,
        cache_on(url, prefix, member_lease_s=LEASE_S) as cache,
    ):
        await other.agents.set("a1", "old")
        assert await cache.agents.invalidate("a1") is True
        assert await other.agents.get("a1") is None
        await client.execute_command("ACL", "SETUSER", prefix.strip(":"), "+unlink")
        async with asyncio.timeout(10):
            await cache.settled()


async def test_a_process_that_ends_with_a_queue_ends_the_era(
    valkey_url: str, other: Cache, prefix: str, client: Any
) -> None:
    """It could leave the members, and must not."""
    await other.agents.set("a1", "old")
    async with refused(valkey_url, prefix, client) as url:
        async with cache_on(url, prefix, member_lease_s=LEASE_S) as cache:
            call = asyncio.create_task(cache.agents.invalidate("a1"))

            async def queued() -> bool:
                return cache.stats()["invalidations_missed"] == 1

            await eventually(queued)
            call.cancel()
        await eventually(lambda: _is_gone(other))


async def _is_gone(cache: Cache) -> bool:
    return await cache.agents.get("a1") is None


async def test_a_process_that_ends_normally_does_not_end_the_era(
    valkey_url: str, other: Cache, prefix: str
) -> None:
    async with cache_on(valkey_url, prefix, member_lease_s=LEASE_S):
        await other.agents.set("a1", "value")
        before = await other.client.get(other.components.keys.era)
        assert await other.client.pttl(other.components.keys.era) <= LEASE_S * 1000
    assert len(await _members(other)) == 1
    assert await other.client.pttl(other.components.keys.era) > LEASE_S * 1000
    assert await other.client.get(other.components.keys.era) == before
    assert await other.agents.get("a1") == "value"


async def test_a_blocked_event_loop_does_not_end_the_era(
    valkey_url: str, other: Cache, prefix: str
) -> None:
    import redis

    async with cache_on(valkey_url, prefix, member_lease_s=LEASE_S) as cache:
        await cache.agents.set("a1", "value")
        direct = redis.Redis(unix_socket_path=valkey_url.removeprefix("unix://"))
        key = cache.components.keys.members

        def first_end() -> float:
            found: Any = direct.zrange(key, 0, 0, withscores=True)
            return float(found[0][1])

        until = first_end() + LEASE_S * 1000
        eventually_sync(lambda: first_end() > until)  # nothing of the loop runs meanwhile
        direct.close()
        assert await cache.agents.get("a1") == "value"


class Process:
    """The cache of another process (tests/support/member.py), driven by lines of text."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self) -> str:
        assert self._process.stderr is not None
        async with asyncio.timeout(30):
            return (await self._process.stderr.readline()).decode().strip()

    async def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


@asynccontextmanager
async def process_of(url: str, prefix: str) -> AsyncIterator[Process]:
    words = ["-m", "tests.support.member", url, prefix, str(LEASE_S)]
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


async def test_a_process_killed_with_a_queue_ends_the_era(
    proxy: FaultProxy, other: Cache, prefix: str
) -> None:
    await other.agents.set("a1", "old")
    async with process_of(proxy.url, prefix) as process:
        proxy.hold()
        await process.ask("invalidate a1")
        assert await process.says() == "queued"
        process.send(signal.SIGKILL)
        await eventually(lambda: _is_gone(other))
        assert await other.agents.get_or_load("a1", Loader("new")) == "new"
        await _is_member(other, 1)


async def test_a_stopped_process_comes_back_to_the_others_era(
    valkey_url: str, other: Cache, prefix: str
) -> None:
    async with process_of(valkey_url, prefix) as process:
        await other.agents.set("a1", "old")
        await process.ask("get a1")
        assert await process.says() == "old"
        process.send(signal.SIGSTOP)
        await eventually(lambda: _is_gone(other))
        await other.agents.set("a1", "new")
        process.send(signal.SIGCONT)
        await process.ask("get a1")
        assert await process.says() in {"new", "None"}
        await process.ask("invalidate a1")
        assert await process.says() == "True"
        assert await other.agents.get("a1") is None


async def test_a_lost_list_of_members_ends_the_era(other: Cache, prefix: str) -> None:
    """Without the list, for example after an eviction, no silent member would be noticed."""
    await other.agents.set("a1", "old")
    async with open_pool("unix://" + _path(other), PoolOptions(), name="t") as client:
        await client.delete(other.components.keys.members)
        async with cache_on("unix://" + _path(other), prefix):
            assert await other.agents.get("a1") is None


def _path(cache: Cache) -> str:
    return str(cache.client.connection_pool.connection_kwargs["path"])


async def test_a_renewal_that_arrives_late_gives_nothing_more(
    other: Cache, prefix: str, tmp_path: Path
) -> None:
    membership = other.components.invalidation._membership
    [(name, end)] = (await _members(other)).items()
    unguarded = other.components.entries.connection.unguarded
    from cache.coherence.era import script_args
    from cache.coherence.membership import _SCRIPT

    late = script_args(
        "renew", unguarded, other.components.keys.era, member=name.decode(), lease_ms=30_000,
        latest_ms=membership._basis_ms,
    )  # fmt: skip
    for _ in range(3):
        reply = await _SCRIPT.run(
            unguarded, [other.components.keys.members, other.components.keys.era], late
        )
        assert reply[0] == 1
    assert (await _members(other))[name] <= end + 1

    await other.client.zrem(other.components.keys.members, name)
    reply = await _SCRIPT.run(
        unguarded, [other.components.keys.members, other.components.keys.era], late
    )
    assert reply[0] == 0
    assert name not in await _members(other)
