"""A lost lease costs a job a growing wait and, at last, a worker without another stalled job."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.queues import queue_of
from worker.engine import EngineOptions
from worker.engine.leases import renew
from worker.engine.poll import Poll
from worker.engine.records import Claim
from worker.keys import EngineKeys, QueueKeys

pytestmark = pytest.mark.integration

LEASE_S = 100.0
MARGIN_S = 20.0


def new_poll(client: Any, prefix: str, name: str = "w", stalled_count: int = 3) -> Poll:
    options = EngineOptions(lease_s=LEASE_S, max_lost_leases=stalled_count)
    return Poll(client, EngineKeys(QueueKeys(prefix)), options, worker_id=name)


async def lapse(client: Any, prefix: str) -> None:
    """Every lease that stands ends now, as if its time had passed."""
    running = f"{prefix}queue:running"
    for id_ in await client.zrange(running, 0, -1):
        await client.zadd(running, {id_: 1})


async def holds_s(client: Any, prefix: str, id_: str) -> float:
    """For how long nobody else may claim it."""
    score = await client.zscore(f"{prefix}queue:running", id_)
    return float(score) / 1000 - time.time()


async def test_each_lost_lease_lengthens_the_next_and_renewal_keeps_that(
    client: Any, prefix: str
) -> None:
    await queue_of(client, prefix).enqueue("f", job_id="a")
    poll = new_poll(client, prefix, stalled_count=9)
    keys, waits = EngineKeys(QueueKeys(prefix)), []
    for stalled_count in range(8):
        (claim,) = (await poll.run([], 1)).claims
        assert claim.stalled_count == stalled_count
        claimed = await holds_s(client, prefix, "a")
        assert await renew(client, keys, [claim], lease_ms=int(LEASE_S * 1000)) == []
        waits.append(await holds_s(client, prefix, "a"))
        assert abs(waits[-1] - claimed) < MARGIN_S / 2
        await lapse(client, prefix)
    # Nothing is added to the first: a killed worker's job runs again within its lease.
    assert abs(waits[0] - LEASE_S) < MARGIN_S / 2
    assert all(after - before > LEASE_S / 10 for before, after in pairwise(waits[:6]))
    # The second is within the 20 s of the promise, at a lease of 15 s; and there is an end to it.
    assert waits[1] < LEASE_S * 20 / 15
    assert waits[5] - MARGIN_S < waits[7] < 8 * LEASE_S


async def _lose(client: Any, prefix: str, times: int) -> list[Claim]:
    poll = new_poll(client, prefix, name="dead")
    claims: list[Claim] = []
    for _ in range(times):
        claims = (await poll.run([], 10, stalled_jobs=10)).claims
        await lapse(client, prefix)
    return claims


async def test_after_one_lost_lease_jobs_are_claimed_together(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for n in range(5):
        await queue.enqueue("f", job_id=f"j{n}")
    await _lose(client, prefix, 1)
    assert len((await new_poll(client, prefix).run([], 10, stalled_jobs=0)).claims) == 5


async def test_a_worker_claims_one_almost_poisoned_job_beside_fresh_ones(
    client: Any, prefix: str
) -> None:
    queue = queue_of(client, prefix)
    for n in range(4):
        await queue.enqueue("f", job_id=f"stalled{n}")
    await _lose(client, prefix, 2)
    for n in range(3):
        await queue.enqueue("f", job_id=f"fresh{n}")
    polled = await new_poll(client, prefix, "a").run([], 5)
    assert [claim.stalled_count for claim in polled.claims] == [2, 0, 0, 0]
    # The others are put off, not forgotten, and stand in no other's way.
    await lapse(client, prefix)
    other = await new_poll(client, prefix, "b").run([], 5, stalled_jobs=0)
    assert [claim.stalled_count for claim in other.claims] == [1, 1, 1]
    assert len(other.poisoned) == 1
    assert other.next_due is not None
    assert other.next_due - other.now <= 1000


async def test_after_an_outage_leases_are_renewed_before_jobs_are_claimed(
    client: Any, prefix: str
) -> None:
    queue, owner = queue_of(client, prefix), new_poll(client, prefix)
    keys, other = EngineKeys(QueueKeys(prefix)), new_poll(FailsOnce(client), prefix, name="other")
    await queue.enqueue("f", job_id="a")
    (claim,) = (await owner.run([], 1)).claims
    await lapse(client, prefix)
    # The outage was long: the job is due in its queue again, too.
    await client.zadd(keys.default_queue, {"a": 1})
    await queue.enqueue("f", job_id="b")
    found = await other.run([], 10)
    assert [each.id for each in found.claims] == [b"b"]
    assert not (await other.run([], 10)).claims
    assert await renew(client, keys, [claim], lease_ms=int(LEASE_S * 1000)) == []
    assert await holds_s(client, prefix, "a") > LEASE_S / 2


class FailsOnce:
    """A client that loses its first call, as one of a server that was away."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._failed = False

    async def evalsha(self, *args: Any) -> Any:
        if not self._failed:
            self._failed = True
            raise RedisConnectionError("away")
        return await self._client.evalsha(*args)

    async def eval(self, *args: Any) -> Any:
        return await self._client.eval(*args)
