"""Jobs claimed ahead of a free slot are few, go back soon, and never exceed max_jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from arq.worker import func

from tests.support.engine import burst, new_worker
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker.engine import EngineOptions, Worker
from worker.engine.poll import MOST_AHEAD, Poll
from worker.keys import EngineKeys, QueueKeys
from worker.queue.calls import Call
from worker.queue.priority import Priority

pytestmark = pytest.mark.integration

MAX_JOBS = 4
QUICK_JOBS, HELD_JOBS = 200, 400


class Gate:
    """Quick jobs, then jobs that hold their slots until the gate opens."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started: list[str] = []

    async def quick(self, ctx: dict[str, Any]) -> None:
        pass

    async def held(self, ctx: dict[str, Any]) -> None:
        self.started.append(ctx["job_id"])
        await self.open.wait()


def ahead_of(worker: Worker) -> list[str]:
    """Return the ids of the claims that have not started."""
    return [claim.job_id for claim in list(worker.claims.values()) if claim.task is None]


@asynccontextmanager
async def stocked(client: Any, prefix: str, gate: Gate) -> AsyncIterator[Worker]:
    """Run a worker whose slots are all taken, with jobs claimed ahead."""
    calls = [Call("quick") for _ in range(QUICK_JOBS)]
    calls += [Call("held", job_id=f"h{n}") for n in range(HELD_JOBS)]
    await queue_of(client, prefix).enqueue_many(calls)
    functions = [func(gate.quick, name="quick"), func(gate.held, name="held")]
    worker = new_worker(client, prefix, functions, max_jobs=MAX_JOBS)
    main = asyncio.create_task(worker.main())

    async def is_stocked() -> bool:
        return len(gate.started) == MAX_JOBS and bool(ahead_of(worker))

    try:
        await eventually(is_stocked)
        yield worker
    finally:
        worker.force()
        async with asyncio.timeout(15):
            await main


async def claims_in(client: Any, prefix: str) -> set[str]:
    """Return the ids of the jobs that have a claim on the server."""
    found = set()
    async for key in client.scan_iter(match=f"{prefix}in-progress:*", count=1000):
        found.add(key.decode().rpartition(":")[2])
    return found


async def test_jobs_claimed_ahead_are_few_and_really_claimed(client: Any, prefix: str) -> None:
    gate = Gate()
    async with stocked(client, prefix, gate) as worker:
        ahead = ahead_of(worker)
        assert len(ahead) <= MOST_AHEAD
        assert set(ahead) <= await claims_in(client, prefix)
        assert worker.jobs_running == len(gate.started) == MAX_JOBS


async def test_jobs_that_do_not_start_go_back_and_stay_there(client: Any, prefix: str) -> None:
    gate = Gate()
    async with stocked(client, prefix, gate) as worker:

        async def only_the_running() -> bool:
            return await claims_in(client, prefix) == set(gate.started)

        await eventually(only_the_running)
        assert await client.zcard(f"{prefix}queue") == HELD_JOBS
        assert not [key async for key in client.scan_iter(match=f"{prefix}retry:*")]
        # It keeps polling (for abort marks) and does not claim them again.
        assert worker.components is not None
        poll = worker.components.poll
        before = poll.number

        async def polled_again() -> bool:
            return poll.number > before + 5

        await eventually(polled_again)
        assert not ahead_of(worker)
        assert worker.jobs_retried == 0


async def test_a_quiet_worker_gives_them_back_at_once(client: Any, prefix: str) -> None:
    gate = Gate()
    async with stocked(client, prefix, gate) as worker:
        worker.quiet()
        assert not ahead_of(worker)

        async def only_the_running() -> bool:
            return await claims_in(client, prefix) == set(gate.started)

        await eventually(only_the_running)
        assert worker.jobs_running == MAX_JOBS


async def test_a_drain_gives_back_everything_uncharged(client: Any, prefix: str) -> None:
    gate = Gate()
    async with stocked(client, prefix, gate):
        pass
    assert await claims_in(client, prefix) == set()
    assert await client.zcard(f"{prefix}queue") == HELD_JOBS
    assert len(gate.started) == MAX_JOBS
    gate.open.set()
    functions = [func(gate.held, name="held")]
    worker = await burst(client, prefix, functions, max_jobs=32)
    assert worker.jobs_complete == HELD_JOBS
    assert worker.jobs_rescued == 0


async def test_an_aborted_job_claimed_ahead_never_runs(
    client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The abort mark must reach it while it is held, not at its next claim.
    monkeypatch.setattr("worker.engine.slots.STALE_S", 60.0)
    gate = Gate()
    async with stocked(client, prefix, gate) as worker:
        job_id = ahead_of(worker)[-1]
        aborting = asyncio.create_task(
            queue_of(client, prefix).jobs.get(job_id).abort(timeout_s=20)
        )

        async def has_mark() -> bool:
            return worker.claims[job_id.encode()].mark_ms is not None

        await eventually(has_mark)
        gate.open.set()
        assert await aborting
    assert job_id not in gate.started


async def test_jobs_claimed_ahead_never_exceed_max_jobs(client: Any, prefix: str) -> None:
    now = most = held = 0
    runs: list[str] = []

    async def hold(ctx: dict[str, Any]) -> None:
        nonlocal now, most, held
        runs.append(ctx["job_id"])
        now += 1
        most, held = max(most, now), max(held, len(worker.claims))
        await asyncio.sleep(0)
        now -= 1

    await queue_of(client, prefix).enqueue_many([Call("hold") for _ in range(1000)])
    worker = new_worker(client, prefix, [func(hold, name="hold")], burst=True, max_jobs=MAX_JOBS)
    async with asyncio.timeout(30):
        await worker.main()
    assert most == MAX_JOBS
    assert held > 2 * MAX_JOBS
    assert len(runs) == len(set(runs)) == worker.jobs_complete == 1000


async def test_a_burst_runs_exactly_max_burst_jobs(client: Any, prefix: str) -> None:
    gate = Gate()
    await queue_of(client, prefix).enqueue_many([Call("quick") for _ in range(2000)])
    worker = await burst(
        client, prefix, [func(gate.quick, name="quick")], max_jobs=MAX_JOBS, max_burst_jobs=150
    )
    assert worker.jobs_complete == 150
    assert await client.zcard(f"{prefix}queue") == 1850
    assert await claims_in(client, prefix) == set()


async def test_an_urgent_job_waits_only_for_jobs_already_claimed(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    order: list[str] = []
    behind = 0

    async def note(ctx: dict[str, Any]) -> None:
        nonlocal behind
        order.append(ctx["job_id"])
        if len(order) == 300:
            await queue.enqueue("note", job_id="urgent", priority=Priority.CRITICAL)
            behind = len(order)

    await queue.enqueue_many([Call("note") for _ in range(2000)])
    await burst(client, prefix, [func(note, name="note")], max_jobs=MAX_JOBS)
    assert order.index("urgent") - behind <= MOST_AHEAD + MAX_JOBS


async def test_three_quarters_of_the_due_jobs_stay_for_others(client: Any, prefix: str) -> None:
    await queue_of(client, prefix).enqueue_many([Call("f") for _ in range(24)])
    keys = EngineKeys(QueueKeys(prefix))
    first, second = (Poll(client, keys, EngineOptions(), worker_id=f"w{n}") for n in range(2))
    assert len((await first.run([], 4, ahead=100)).claims) == 4 + 5
    assert len((await second.run([], 0, ahead=100)).claims) == 15 // 4
    assert len((await second.run([], 0, ahead=2)).claims) == 2


async def test_jobs_of_dead_workers_are_claimed_only_into_free_slots(
    client: Any, prefix: str
) -> None:
    await queue_of(client, prefix).enqueue_many([Call("f", job_id=f"j{n}") for n in range(9)])
    keys = EngineKeys(QueueKeys(prefix))
    dead, busy = (Poll(client, keys, EngineOptions(), worker_id=f"w{n}") for n in range(2))
    [lost] = (await dead.run([], 1)).claims
    await client.zadd(keys.running, {lost.job_id: 1})
    assert lost.id not in {c.id for c in (await busy.run([], 0, ahead=8)).claims}
    assert lost.id in {c.id for c in (await busy.run([], 1)).claims}


async def test_an_interrupt_after_a_job_returned_does_not_undo_it(
    client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.execute.CROWD_S", 0.0)  # every job vacates its slot early
    # Between its return and its end, a job can be interrupted, but stays done.
    runs = 0

    async def waits(ctx: dict[str, Any]) -> str:
        nonlocal runs
        runs += 1
        # The loop's second step from here comes between the return and the end.
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(worker.force))
        return "kept"

    queue = queue_of(client, prefix)
    handle = await queue.enqueue("waits")
    worker = new_worker(client, prefix, [func(waits, name="waits")])
    async with asyncio.timeout(20):
        await worker.main()
    assert runs == 1
    assert await handle.result(timeout_s=10) == "kept"
