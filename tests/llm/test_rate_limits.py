"""Tests the rate limits of direct calls on a real server, by its clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.options import call_limits
from tests.support.wait import eventually
from worker.keys import QueueKeys
from worker.llm.rate_limits import RateLimiter
from worker.llm.rate_policy import call_pace

pytestmark = pytest.mark.integration


def rate_limiter(client: Any, prefix: str, *, lease_s: float = 30, **limits: Any) -> RateLimiter:
    return RateLimiter(client, QueueKeys(prefix), "openai", call_limits(**limits), lease_s=lease_s)


async def admitted(limiter: RateLimiter, calls: int, **more: Any) -> int:
    options = {"urgent": False, "tokens": 1, **more}
    waits = await asyncio.gather(*(limiter.admit(f"c{n}", **options) for n in range(calls)))
    return waits.count(0)


@pytest.mark.parametrize("limit", [10, 60, 600, 100_000])
def test_no_minute_holds_more_than_the_limit(limit: int) -> None:
    pace = call_pace(limit)
    assert 60_000 / pace.step_ms + pace.burst <= limit
    assert 60_000 / pace.step_ms >= limit * (0.98 if limit >= 600 else 0.7)


async def test_calls_beyond_the_pace_get_increasing_waits(client: Any, prefix: str) -> None:
    limiter = rate_limiter(client, prefix, requests_per_minute=600)
    waits = [await limiter.admit(f"c{n}", urgent=True, tokens=1) for n in range(20)]
    go = waits.count(0)
    assert 1 <= go <= 8
    # Each call has its own start time, about a tenth of a second after the one before.
    waits_given = [wait for wait in waits if wait]
    assert waits_given == sorted(waits_given)
    assert waits_given[-1] == pytest.approx(0.1 * len(waits_given), rel=0.5)


async def test_a_reservation_is_honored_and_a_missed_one_is_void(client: Any, prefix: str) -> None:
    limiter = rate_limiter(client, prefix, requests_per_minute=600)
    while not await limiter.admit("early", urgent=True, tokens=1):
        await limiter.release("early", "ok")
    reserved_ms = await client.zscore(QueueKeys(prefix).llm_reserved("openai"), "early")

    async def reservation_is_due() -> bool:
        return await limiter.admit("early", urgent=True, tokens=1) == 0

    await eventually(reservation_is_due)
    seconds, micros = await client.time()
    assert seconds * 1000 + micros / 1000 >= reserved_ms - 2
    # A reservation for two seconds ago that was never used.
    now_ms = seconds * 1000 + micros / 1000
    await client.zadd(QueueKeys(prefix).llm_reserved("openai"), {"missed": now_ms - 2000})
    for n in range(20):
        await limiter.admit(f"filler{n}", urgent=True, tokens=1)
    assert await limiter.admit("missed", urgent=True, tokens=1) > 0


async def test_tokens_are_limited_as_well(client: Any, prefix: str) -> None:
    limiter = rate_limiter(client, prefix, tokens_per_minute=60_000)
    assert await limiter.admit("large", urgent=True, tokens=30_000) == 0
    assert await limiter.admit("next", urgent=True, tokens=1000) > 20


async def test_a_share_of_the_calls_in_flight_is_kept_for_urgent_ones(
    client: Any, prefix: str
) -> None:
    limiter = rate_limiter(client, prefix, max_concurrency=10, urgent_share=0.2)
    assert await admitted(limiter, 30) == 8
    waits = [await limiter.admit(f"u{n}", urgent=True, tokens=1) for n in range(5)]
    assert waits.count(0) == 2


async def test_the_slots_of_a_dead_worker_become_free(client: Any, prefix: str) -> None:
    limiter = rate_limiter(client, prefix, lease_s=0.05, max_concurrency=2, urgent_share=0)
    assert await admitted(limiter, 2) == 2

    async def free() -> bool:
        return await limiter.admit("other", urgent=False, tokens=1) == 0

    await eventually(free)


async def test_a_provider_that_asks_to_wait_pauses_every_worker(client: Any, prefix: str) -> None:
    one, other = rate_limiter(client, prefix), rate_limiter(client, prefix)
    assert await one.admit("a", urgent=True, tokens=1) == 0
    await one.release("a", "busy", wait_s=700)
    # Times are whole milliseconds, rounded up.
    assert 600 < await other.admit("b", urgent=True, tokens=1) <= 700.01


async def test_overload_lowers_the_limit_in_flight_and_success_raises_it(
    client: Any, prefix: str
) -> None:
    limiter = rate_limiter(client, prefix, max_concurrency=10, urgent_share=0)
    assert await limiter.admit("a", urgent=True, tokens=1) == 0
    assert await limiter.release("a", "busy") == 7
    assert await limiter.admit("b", urgent=True, tokens=1) == 0
    # One cut for one overload: calls that were in flight report the same overload.
    assert await limiter.release("b", "busy") == 7
    for n in range(8):
        await eventually_admitted(limiter, f"ok{n}")
        limit = await limiter.release(f"ok{n}", "ok")
    assert limit == 8


async def eventually_admitted(limiter: RateLimiter, call_id: str) -> None:
    async def go() -> bool:
        return await limiter.admit(call_id, urgent=True, tokens=1) == 0

    await eventually(go)


async def test_a_call_that_is_admitted_twice_takes_one_slot(client: Any, prefix: str) -> None:
    limiter = rate_limiter(client, prefix, max_concurrency=2, urgent_share=0)
    assert await limiter.admit("same", urgent=True, tokens=1) == 0
    assert await limiter.admit("same", urgent=True, tokens=1) == 0
    assert await limiter.admit("other", urgent=True, tokens=1) == 0
