"""Timeouts of running jobs share timers."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.wait import eventually
from worker.engine.deadlines import Deadlines
from worker.engine.records import Claim

pytestmark = pytest.mark.unit


def claim(name: str) -> Claim:
    return Claim(name.encode(), None, 0, name.encode(), 3, "0", 0, None)


async def test_each_is_told_once_and_the_forgotten_never() -> None:
    late: list[bytes] = []
    deadlines = Deadlines(lambda claim: late.append(claim.id))
    now = asyncio.get_running_loop().time()
    first, ended, second, other = map(claim, ["first", "ended", "second", "other"])
    for watched in (first, ended, second):
        deadlines.watch(watched, 0.05, now)
    deadlines.watch(other, 0.02, now)
    deadlines.forget(ended)

    async def all_told() -> bool:
        return len(late) == 3

    await eventually(all_told)
    assert late == [b"other", b"first", b"second"]
    assert first.deadline == now + 0.05
    assert not deadlines._watched
    assert not deadlines._timers


async def test_a_later_one_is_told_at_its_own_time() -> None:
    late: list[float] = []
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(lambda _: late.append(loop.time()))
    now = loop.time()
    early, later = claim("early"), claim("later")
    deadlines.watch(early, 0.1, now - 0.09)
    deadlines.watch(later, 0.1, now)
    deadlines.forget(early)

    async def told() -> bool:
        return bool(late)

    await eventually(told)
    assert late[0] >= now + 0.1


async def test_closing_leaves_no_timer_behind() -> None:
    deadlines = Deadlines(lambda _: None)
    deadlines.watch(claim("a"), 3600, asyncio.get_running_loop().time())
    [timer] = deadlines._timers.values()
    deadlines.close()
    assert timer.cancelled()
