"""Named leases: one holder at a time, which is told when it is not the holder any more."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cache import Cache, CacheUnavailable, InvalidName, LeaseHeld, LeaseLost, NamedLease
from cache.connection.protocol import Away
from tests.support.caches import cache_on
from tests.support.lua_rules import remove_rule
from tests.support.outages import fragile_server
from tests.support.wait import eventually

pytestmark = pytest.mark.integration

# Long enough for a busy machine to renew in time, where a test counts on that.
TTL_S, LONG_S, SHORT_S = 3.0, 60.0, 0.5


@pytest.fixture
async def server(valkey_url: str, client: Any) -> str:
    """A server that gives leases at once: one that has just started gives none."""

    async def old_enough() -> bool:
        return int((await client.info("server"))["uptime_in_seconds"]) >= TTL_S

    await eventually(old_enough)
    return valkey_url


@pytest.fixture
async def cache(server: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(server, prefix) as cache:
        yield cache


@pytest.fixture
async def other(server: str, prefix: str) -> AsyncIterator[Cache]:
    async with cache_on(server, prefix) as cache:
        yield cache


async def _lapsed(lease: NamedLease) -> bool:
    return not lease.held


async def test_another_waits_until_the_lease_is_given_back(cache: Cache, other: Cache) -> None:
    async with cache.lease("polls", ttl_s=TTL_S) as first:
        assert first.held
        with pytest.raises(LeaseHeld) as caught:
            async with other.lease("polls", ttl_s=TTL_S, wait_s=0):
                raise AssertionError("two holders")
        assert 0 < caught.value.left_s <= TTL_S
        async with other.lease("sweeps", ttl_s=TTL_S) as unrelated:
            assert unrelated.held
        waiting = asyncio.create_task(_take_once(other))
        await asyncio.sleep(0)
    assert await _lapsed(first)
    assert await waiting > first.token


async def _take_once(cache: Cache) -> int:
    async with cache.lease("polls", ttl_s=TTL_S) as lease:
        assert lease.held
        return lease.token


async def test_a_lease_is_renewed_while_its_block_runs(cache: Cache, client: Any) -> None:
    async with cache.lease("polls", ttl_s=TTL_S):
        least_ms = TTL_S * 1000

        async def renewed() -> bool:
            nonlocal least_ms
            left_ms = await client.pttl(cache.components.keys.lease("polls"))
            least_ms = min(least_ms, left_ms)
            return bool(left_ms > least_ms)

        await eventually(renewed)


async def test_a_lease_may_be_taken_again(cache: Cache, client: Any) -> None:
    """Also after it was lost."""
    lease = cache.lease("polls", ttl_s=TTL_S)

    async def body() -> None:
        async with lease:
            await client.delete(cache.components.keys.lease("polls"))
            await asyncio.Event().wait()

    tokens = []
    for _ in range(2):
        with pytest.raises(LeaseLost):
            await body()
        tokens.append(lease.token)
    async with lease:
        tokens.append(lease.token)
    assert tokens == sorted(set(tokens))


async def test_a_failing_block_gives_the_lease_back(cache: Cache, other: Cache) -> None:
    with pytest.raises(LookupError):
        async with cache.lease("polls", ttl_s=TTL_S):
            raise LookupError
    async with other.lease("polls", ttl_s=TTL_S, wait_s=0):
        pass


async def test_a_block_whose_lease_was_taken_away_is_canceled(cache: Cache, client: Any) -> None:
    """The server has evicted it, so another could have it now."""

    async def body() -> None:
        async with cache.lease("polls", ttl_s=SHORT_S):
            await client.delete(cache.components.keys.lease("polls"))
            await asyncio.Event().wait()

    with pytest.raises(LeaseLost, match="'polls' was lost"):
        await body()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_is_canceled_before_another_can_take_over(
    tmp_path: Path, prefix: str
) -> None:
    """The holder is cut off: it cannot renew, and is told within the TTL."""
    with fragile_server(tmp_path) as server:
        async with cache_on(server.url, prefix, timeout_s=2) as cache:

            async def body() -> None:
                async with cache.lease("polls", ttl_s=TTL_S) as lease:
                    server.freeze()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        assert not lease.held

            with pytest.raises(LeaseLost):
                await body()
            with pytest.raises(CacheUnavailable, match="'polls' was not taken"):
                async with cache.lease("polls", ttl_s=SHORT_S):
                    raise AssertionError("taken without a server")
            server.thaw()


async def test_a_caller_that_is_canceled_is_not_told_of_a_lost_lease(cache: Cache) -> None:
    entered = asyncio.Event()

    async def body() -> None:
        async with cache.lease("polls", ttl_s=TTL_S):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_canceled_wait_leaves_nothing_behind(cache: Cache, other: Cache) -> None:
    async with cache.lease("polls", ttl_s=TTL_S):
        waiting = asyncio.create_task(_take_once(other))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with cache.lease("polls", ttl_s=TTL_S, wait_s=0) as lease:
        assert lease.held


async def test_tokens_grow_although_the_server_forgot_the_last(cache: Cache, client: Any) -> None:
    first = await _take_once(cache)
    await client.delete(cache.components.keys.fence("polls"))
    assert await _take_once(cache) > first
    # A clock that was set back is made up for by the last token.
    await client.set(cache.components.keys.fence("polls"), 2**53 - 10)
    assert await _take_once(cache) == 2**53 - 9


async def test_a_stopped_holder_is_fenced_off_and_told(
    server: str, prefix: str, cache: Cache
) -> None:
    words = ["-m", "tests.support.lease_holder", server, prefix, "polls", str(TTL_S)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            theirs = int((await process.stdout.readline()).split()[1])
            os.kill(process.pid, signal.SIGSTOP)
            async with cache.lease("polls", ttl_s=TTL_S) as lease:
                assert lease.token > theirs
                os.kill(process.pid, signal.SIGCONT)
                assert await process.stdout.readline() == b"lost\n"
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("rule", [True, False], ids=["with the rule", "without"])
async def test_one_process_holds_a_lease_at_a_time(
    server: str, prefix: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rule:
        remove_rule(monkeypatch, "named_lease", "one_holder")
    async with (
        cache_on(server, prefix) as one,
        cache_on(server, prefix) as two,
        one.lease("polls", ttl_s=TTL_S) as first,
    ):
        both = False
        with suppress(LeaseHeld):
            async with two.lease("polls", ttl_s=TTL_S, wait_s=0) as second:
                both = first.held and second.held
        assert both is not rule


@pytest.mark.parametrize("rule", [True, False], ids=["with the rule", "without"])
async def test_a_server_that_has_just_started_gives_no_lease(
    tmp_path: Path, prefix: str, rule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It restarted without its data, and another process still counts on its lease."""
    if not rule:
        remove_rule(monkeypatch, "named_lease", "young_server")
    with fragile_server(tmp_path) as server:
        async with cache_on(server.url, prefix) as cache:
            given = False
            with suppress(LeaseHeld):
                async with cache.lease("polls", ttl_s=LONG_S, wait_s=0):
                    given = True
            assert given is not rule


async def test_holders_never_overlap_and_tokens_grow(
    server: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes at random: some give the lease back, some are cut off until it has lapsed."""
    rng = random.Random(7)
    tokens: list[int] = []
    holders: list[NamedLease] = []

    async def away(*_command: Any) -> None:
        raise Away("the test says so")

    async def take(cache: Cache) -> None:
        async with cache.lease("polls", ttl_s=0.3) as lease:
            assert not any(holder.held for holder in holders)
            holders.append(lease)
            tokens.append(lease.token)
            if rng.random() < 0.3:
                with monkeypatch.context() as cut:
                    cut.setattr(cache.components.entries.connection, "run", away)
                    await eventually(lambda: _lapsed(lease))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)

    async def work(cache: Cache) -> None:
        while len(tokens) < 15:
            with suppress(LeaseLost):
                await take(cache)

    async with (
        cache_on(server, prefix) as one,
        cache_on(server, prefix) as two,
        cache_on(server, prefix) as three,
        asyncio.timeout(120),
        asyncio.TaskGroup() as group,
    ):
        for cache in (one, two, three):
            group.create_task(work(cache))
    assert tokens == sorted(set(tokens))


async def test_a_lease_works_while_caching_is_disabled(server: str, prefix: str) -> None:
    async with cache_on(server, prefix, enabled=False) as cache:
        assert await _take_once(cache) > 0


@pytest.mark.parametrize("ttl_s", [0, -1, 3601, float("nan")])
async def test_a_ttl_out_of_range_is_refused(cache: Cache, ttl_s: float) -> None:
    with pytest.raises(ValueError, match="ttl_s must be more than 0 and at most 3600"):
        cache.lease("polls", ttl_s=ttl_s)
    with pytest.raises(InvalidName):
        cache.lease("")
