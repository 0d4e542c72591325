"""
Priorities under overload, turn by turn: no clock decides what a worker could have done.

A worker ends ten jobs a turn while twelve arrive: 120 % of what it can do.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.support.queues import queue_of
from worker import call
from worker.engine import EngineOptions
from worker.engine.poll import Poll
from worker.engine.records import ORDER, Claim, EngineKeys
from worker.keys import QueueKeys
from worker.queue.priority import Priority

pytestmark = pytest.mark.integration

CAPACITY = 10
TURNS = 60
# Arrivals a turn, most urgent first. Without a reserve the first takes three queues and all
# there is for them, the second one queue.
MIXES = {"all four": (6, 3, 1, 2), "critical alone": (11, 0, 0, 1)}
Waiting = list[list[tuple[bytes, float]]]


async def _waiting(client: Any, keys: EngineKeys, held: set[bytes]) -> Waiting:
    """Per priority the jobs that nobody runs, longest due first, with their due times."""
    rows = [await client.zrange(name, 0, -1, withscores=True) for name in keys.queues]
    return [[row for row in found if row[0] not in held] for found in rows]


def _expected(waiting: Waiting, want: int, reserved: int) -> list[bytes]:
    """What the promise says: the longest due first, as far as reserved; then strictly by priority."""
    left = [list(jobs) for jobs in waiting]
    taken = []
    for _ in range(reserved):
        oldest = min((jobs for jobs in left if jobs), key=lambda jobs: jobs[0][1])
        taken.append(oldest.pop(0)[0])
    for jobs in left:
        taken += [id_ for id_, _ in jobs[: want - len(taken)]]
    return taken


async def _overload(
    client: Any, prefix: str, *, reserve: float, batch: int, mix: tuple[int, ...]
) -> Counter[Priority]:
    """The claims of `TURNS` turns, by priority; each turn's are compared with the promise."""
    assert sum(mix) * 10 == CAPACITY * 12
    queue, keys = queue_of(client, prefix), EngineKeys(QueueKeys(prefix))
    poll = Poll(client, keys, EngineOptions(reserve=reserve), worker_id="w")
    done: Counter[Priority] = Counter()
    running: list[Claim] = []
    granted = 0
    for _ in range(TURNS):
        pairs = zip(ORDER, mix, strict=True)
        await queue.enqueue_many(
            call("f", priority=p) for p, number in pairs for _ in range(number)
        )
        for _ in range(CAPACITY // batch):
            waiting = await _waiting(client, keys, {claim.id for claim in running})
            reserved = int((granted + batch) * reserve) - int(granted * reserve)
            polled = await poll.run([claim.end("done", {}) for claim in running], batch)
            running = polled.claims
            granted += len(running)
            expected = _expected(waiting, batch, reserved)
            assert [claim.id for claim in running] == expected
            done.update(claim.priority for claim in running)
    assert done.total() == CAPACITY * TURNS
    return done


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("batch", [CAPACITY, 1], ids=["together", "one by one"])
async def test_at_120_percent_low_keeps_its_reserved_share_and_the_rest_is_strict(
    client: Any, prefix: str, mix: tuple[int, ...], batch: int
) -> None:
    done = await _overload(client, prefix, reserve=0.1, batch=batch, mix=mix)
    reserved = CAPACITY * TURNS // 10
    critical, high, default, low = (done[priority] for priority in ORDER)
    if mix == MIXES["critical alone"]:
        # The age of the critical ones that pile up counts as well.
        assert low > 3 * reserved // 4
        assert critical + low == CAPACITY * TURNS
    else:
        # Who fits into nine tenths never waits; the reserve goes to the others as they came.
        assert (critical, high) == (6 * TURNS, 3 * TURNS)
        assert default + low == reserved
        assert abs(low - 2 * default) <= 2


async def test_without_a_reserve_low_starves(client: Any, prefix: str) -> None:
    done = await _overload(client, prefix, reserve=0, batch=CAPACITY, mix=MIXES["all four"])
    assert done[Priority.LOW] == 0
