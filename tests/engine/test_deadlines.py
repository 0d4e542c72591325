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


async def test_each_deadline_is_reported_once_unless_forgotten() -> None:
    late: list[bytes] = []
    deadlines = Deadlines(lambda claim: late.append(claim.id))
    now = asyncio.get_running_loop().time()
    first, ended, second, other = map(claim, ["first", "ended", "second", "other"])
    for watched in (first, ended, second):
        deadlines.watch(watched, 0.05, now)
    deadlines.watch(other, 0.02, now)
    deadlines.forget(ended)

    async def all_reported() -> bool:
        return len(late) == 3

    await eventually(all_reported)
    assert late == [b"other", b"first", b"second"]
    assert first.deadline == now + 0.05
    assert deadlines.is_idle


async def test_a_later_deadline_is_not_reported_early() -> None:
    late: list[float] = []
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(lambda _: late.append(loop.time()))
    now = loop.time()
    early, later = claim("early"), claim("later")
    deadlines.watch(early, 0.1, now - 0.09)
    deadlines.watch(later, 0.1, now)
    deadlines.forget(early)

    async def reported() -> bool:
        return bool(late)

    await eventually(reported)
    assert late[0] >= now + 0.1


async def test_nothing_is_reported_after_closing() -> None:
    late: list[Claim] = []
    loop, passed = asyncio.get_running_loop(), asyncio.Event()
    deadlines = Deadlines(late.append)
    deadlines.watch(claim("a"), 0.02, loop.time())
    loop.call_later(0.03, passed.set)

    deadlines.close()

    await passed.wait()
    assert late == []
