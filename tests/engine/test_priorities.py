"""
Priorities under overload, poll by poll, so that no clock decides the result.

A worker ends ten jobs per poll while twelve arrive: 120 % of its capacity.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.support.queues import queue_of
from worker import call
from worker.engine import EngineOptions
from worker.engine.poll import Poll
from worker.engine.records import ORDER, Claim
from worker.keys import EngineKeys, QueueKeys
from worker.queue.priority import Priority

pytestmark = pytest.mark.integration

CAPACITY = 10
POLLS = 60
# Arrivals per poll, most urgent first. Without a reserve, the first mix gives all claims to
# three queues, the second to one.
MIXES = {"all four": (6, 3, 1, 2), "critical alone": (11, 0, 0, 1)}
Waiting = list[list[tuple[bytes, float]]]


async def _waiting(client: Any, keys: EngineKeys, held: set[bytes]) -> Waiting:
    """The waiting jobs of each priority with their due times, longest due first."""
    rows = [await client.zrange(name, 0, -1, withscores=True) for name in keys.queues]
    return [[row for row in found if row[0] not in held] for found in rows]


def _expected(waiting: Waiting, want: int, reserved: int) -> list[bytes]:
    """Return the promised claims: the reserved ones by age, then the others by priority."""
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
    """Count the claims of `POLLS` polls by priority; compare each poll with the promise."""
    assert sum(mix) * 10 == CAPACITY * 12
    queue, keys = queue_of(client, prefix), EngineKeys(QueueKeys(prefix))
    poll = Poll(client, keys, EngineOptions(reserve=reserve), worker_id="w")
    done: Counter[Priority] = Counter()
    running: list[Claim] = []
    granted = 0
    for _ in range(POLLS):
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
    assert done.total() == CAPACITY * POLLS
    return done


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("batch", [CAPACITY, 1], ids=["together", "one by one"])
async def test_at_120_percent_low_keeps_its_share_and_the_rest_is_strict(
    client: Any, prefix: str, mix: tuple[int, ...], batch: int
) -> None:
    done = await _overload(client, prefix, reserve=0.1, batch=batch, mix=mix)
    reserved = CAPACITY * POLLS // 10
    critical, high, default, low = (done[priority] for priority in ORDER)
    if mix == MIXES["critical alone"]:
        # Critical jobs that pile up get a part of the share by their age, too.
        assert low > 3 * reserved // 4
        assert critical + low == CAPACITY * POLLS
    else:
        # Jobs that fit into nine tenths never wait; the reserve goes to the others by age.
        assert (critical, high) == (6 * POLLS, 3 * POLLS)
        assert default + low == reserved
        assert abs(low - 2 * default) <= 2


async def test_without_a_reserve_low_starves(client: Any, prefix: str) -> None:
    done = await _overload(client, prefix, reserve=0, batch=CAPACITY, mix=MIXES["all four"])
    assert done[Priority.LOW] == 0
