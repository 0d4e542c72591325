"""Slots without a server: which jobs start, which wait, which go back."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from cache.encoding.codec import lua_text
from tests.support.wait import eventually
from worker.engine.records import Claim
from worker.engine.slots import Slots

pytestmark = pytest.mark.unit


class Running:
    """Replaces the executor: its runs end when `over` is set."""

    def __init__(self) -> None:
        self.slots = Slots(1, {}, (), most_stalled=3)
        self.slots.run_with(cast(Any, self))
        self.started: list[str] = []
        self.over = asyncio.Event()

    async def run(self, claim: Claim) -> None:
        self.started.append(claim.job_id)
        await self.over.wait()
        self.slots.collect(claim, claim.end("done", {}), "completed")

    def with_quick_jobs(self) -> None:
        now = asyncio.get_running_loop().time()
        for n in range(64):
            self.slots.claim_ahead.ended(now - (64 - n) / 1000)


def claim(name: str, stalled_count: int = 0) -> Claim:
    return Claim(name.encode(), b"", 0, name.encode(), 3, "7", stalled_count, None, name)


@pytest.fixture
async def at_work() -> Running:
    return Running()


async def test_jobs_that_waited_too_long_go_back_and_stop_claims_ahead(
    at_work: Running,
) -> None:
    slots = at_work.slots
    at_work.with_quick_jobs()
    assert slots.room()[1] > 0
    first, second = claim("first"), claim("second")
    slots.take([first, second])
    slots.shed()
    assert slots.outbox == []
    second.held_at -= 2
    slots.shed()
    [(gone, end, outcome)] = slots.outbox
    assert (gone, end[0], end[4], outcome) == (second, "back", {"due": "7"}, "unstarted")
    assert slots.room() == (0, 0)
    assert slots.taken == slots.running == 1


async def test_a_stalled_job_starts_first(at_work: Running) -> None:
    slots = at_work.slots
    slots.take([claim("running")])
    slots.take([claim("waits")])
    slots.take([claim("rescued", 1), claim("stalled", 2)])
    assert slots.has_stalled
    at_work.over.set()

    async def all_started() -> bool:
        return len(at_work.started) == 4

    await eventually(all_started)
    assert at_work.started == ["running", "rescued", "stalled", "waits"]


async def test_a_claim_that_is_lost_while_it_waits_is_dropped(at_work: Running) -> None:
    slots = at_work.slots
    first, second = claim("first"), claim("second")
    slots.take([first, second])
    slots.lost([second])
    assert slots.outbox == []
    assert list(slots.claims.values()) == [first]


async def test_without_start_all_jobs_go_back(at_work: Running) -> None:
    slots = at_work.slots
    slots.take([claim("a"), claim("b")], start=False)
    assert [outcome for _, _, outcome in slots.outbox] == ["unstarted"] * 2
    assert not slots.claims
    await asyncio.sleep(0)
    assert at_work.started == []


async def test_a_vacated_slot_is_used_once(at_work: Running) -> None:
    slots = at_work.slots
    first, second, third = (claim(name) for name in ("first", "second", "third"))
    slots.take([first, second, third])
    slots.vacate(first)
    assert (second.task is not None, third.task) == (True, None)
    # Its end, when it comes, frees no second slot.
    slots.collect(first, first.end("done", {}), "completed")
    assert third.task is None
    slots.collect(second, second.end("done", {}), "completed")
    assert third.task is not None


async def test_a_vacated_slot_is_not_free_after_its_job_came_back(
    at_work: Running,
) -> None:
    slots = at_work.slots
    first, again = claim("first"), claim("first", 1)
    slots.take([first])
    slots.vacate(first)
    slots.take([again, claim("second")])
    # The job that came back holds the slot that it had vacated.
    assert again.task is not None
    assert slots.claims[b"second"].task is None
    slots.collect(first, first.end("done", {}), "completed")
    assert slots.claims[b"second"].task is None


async def test_ends_too_large_for_one_poll_are_sent_one_after_the_other(at_work: Running) -> None:
    slots = at_work.slots
    result = lua_text(bytes(40 * 1024 * 1024))
    large = [claim(name) for name in ("first", "second", "third")]
    for each in large:
        slots.collect(each, each.end("done", {"result": result, "ttl": 1}), "completed")
    for expected in large:
        slots.kick.clear()
        [(sent, _, _)] = slots.post(256)
        assert sent is expected
        # The rest does not wait for another end.
        assert slots.kick.is_set() == bool(slots.outbox)
