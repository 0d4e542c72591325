"""The job that comes with the wake token: which one it is, and who gets it when a worker is full."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
from arq.worker import func
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.engine import new_worker, running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker.engine import EngineOptions, Worker
from worker.engine.poll import NEXT_JOB, Poll, WakePoll
from worker.engine.records import read_claims
from worker.keys import EngineKeys, QueueKeys
from worker.queue.priority import Priority
from worker.queue.store import job_body

pytestmark = pytest.mark.integration

# No periodic poll and no heartbeat finds the job.
SELDOM = EngineOptions(poll_s=60.0, heartbeat_s=60.0)


class Lab:
    def __init__(self, client: Any, prefix: str) -> None:
        self.client = client
        self.keys = EngineKeys(QueueKeys(prefix))
        self.queue = queue_of(client, prefix)

    def poll(self, worker_id: str = "w") -> Poll:
        return Poll(self.client, self.keys, EngineOptions(), worker_id=worker_id)

    async def run(self, polled: WakePoll) -> list[Any]:
        """Send it as a waker does, without the wait."""
        await self.poll().prepare()
        rows: list[Any] = await self.client.execute_command(*polled.command)
        return rows

    async def next_job(self, poll: Poll | None = None) -> list[str]:
        poll = poll or self.poll()
        return [claim.job_id for claim in read_claims(await self.run(poll.wake_poll()))]


@pytest.fixture
def lab(client: Any, prefix: str) -> Lab:
    return Lab(client, prefix)


@pytest.mark.parametrize("priority", list(Priority))
async def test_it_is_the_due_job_of_the_only_queue_that_has_one(
    lab: Lab, priority: Priority
) -> None:
    other = Priority.LOW if priority is Priority.CRITICAL else Priority.CRITICAL
    await lab.queue.enqueue("f", job_id="later", delay_s=60, priority=other)
    for n in range(2):
        await lab.queue.enqueue("f", job_id=f"a{n}", priority=priority)
    poll = lab.poll()
    assert await lab.next_job(poll) == ["a0"]
    assert await lab.next_job(poll) == ["a1"]
    assert await lab.next_job(poll) == []


async def test_the_choice_between_two_queues_is_left_to_the_poll(lab: Lab) -> None:
    await lab.queue.enqueue("f", job_id="high", priority=Priority.HIGH)
    await lab.queue.enqueue("f", job_id="low", priority=Priority.LOW)
    assert await lab.next_job() == []
    (claim,) = (await lab.poll().run([], 1)).claims
    assert claim.job_id == "high"


async def test_a_job_that_somebody_holds_is_left_to_the_poll(lab: Lab) -> None:
    await lab.queue.enqueue("f", job_id="a")
    # As stock arq's workers write it.
    await lab.client.set(lab.keys.base.in_progress("a"), b"1", px=60_000)
    assert await lab.next_job() == []
    assert await lab.client.get(lab.keys.base.in_progress("a")) == b"1"


async def test_a_body_of_another_type_costs_the_other_jobs_nothing(lab: Lab) -> None:
    keys = lab.keys.base
    for n in range(4):
        await lab.queue.enqueue("f", job_id=f"a{n}")
        if n in {0, 2}:
            await lab.client.delete(keys.job(f"a{n}"))
            await lab.client.rpush(keys.job(f"a{n}"), "not a body")
    await lab.client.rpush(keys.in_progress("a3"), "not a claim")
    first = read_claims(await lab.run(lab.poll().wake_poll()))
    others = (await lab.poll().run([], 3)).claims
    assert [(c.job_id, c.body is None) for c in (*first, *others)] == [
        ("a0", True), ("a1", False), ("a2", True), ("a3", False)
    ]  # fmt: skip


@pytest.mark.parametrize("pack", [pickle.dumps, msgpack.packb])
async def test_a_stock_clients_body_does_not_expire_while_it_runs(lab: Lab, pack: Any) -> None:
    body = pack({"t": None, "f": "f", "a": (), "k": {}, "et": 1})
    await lab.queue.enqueue("f", job_id="a")
    await lab.client.set(lab.keys.base.job("a"), body, px=60_000)
    assert await lab.next_job() == ["a"]
    assert await lab.client.ttl(lab.keys.base.job("a")) == -1


async def test_a_poll_that_comes_late_claims_nothing(lab: Lab) -> None:
    poll = lab.poll()
    for n in range(3):
        await lab.queue.enqueue("f", job_id=f"a{n}")
    assert len((await poll.run([], 1)).claims) == 1
    early = poll.number
    assert len((await poll.run([], 1)).claims) == 1
    poll.number = early - 1
    assert (await poll.run([], 1)).claims == []
    # Another run of the same worker counts from 1 again.
    assert len((await lab.poll().run([], 1)).claims) == 1


class Unlucky:
    """A client whose first script call is delayed by the network; `held` has its arguments."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.held: tuple[Any, ...] = ()

    async def evalsha(self, *args: Any) -> Any:
        if not self.held:
            self.held = args
            raise RedisConnectionError("no reply")
        return await self.client.evalsha(*args)

    async def eval(self, *args: Any) -> Any:
        return await self.client.eval(*args)


async def test_the_first_copy_of_a_resent_poll_claims_nothing(
    lab: Lab,
) -> None:
    await lab.poll().run([], 1)  # loads the script
    unlucky = Unlucky(lab.client)
    poll = Poll(unlucky, lab.keys, EngineOptions(), worker_id="w")
    assert (await poll.run([], 1)).claims == []
    await lab.queue.enqueue("f", job_id="a")
    await lab.client.evalsha(*unlucky.held)
    (claim,) = (await poll.run([], 1)).claims
    assert claim.job_id == "a"


async def test_a_wait_that_was_given_up_claims_nothing_later(lab: Lab) -> None:
    poll = lab.poll()
    given_up = poll.wake_poll()
    assert await poll.settle(given_up) == []
    for n in range(2):
        await lab.queue.enqueue("f", job_id=f"a{n}")
    assert await lab.run(given_up) == []
    assert await lab.next_job(poll) == ["a0"]
    assert await lab.run(given_up) == []


# -- with workers ------------------------------------------------------------------


class Runs:
    def __init__(self) -> None:
        self.by: dict[str, str] = {}
        self.go = asyncio.Event()

    async def quick(self, ctx: dict[str, Any]) -> None:
        self.by[ctx["job_id"]] = ctx["worker_id"]

    async def hold(self, ctx: dict[str, Any]) -> None:
        self.by[ctx["job_id"]] = ctx["worker_id"]
        await self.go.wait()

    @property
    def functions(self) -> list[Any]:
        return [func(self.quick, name="quick"), func(self.hold, name="hold")]


async def _waits(worker: Worker) -> bool:
    run = worker.components
    return run is not None and run.waker.is_waiting and run.waker.is_connected


async def test_a_waiting_worker_runs_it_without_another_poll(
    client: Any, prefix: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs()
    async with running(client, prefix, runs.functions, options=SELDOM) as worker:
        await eventually(lambda: _waits(worker))
        # The first wait loads the script.
        first = await lab.queue.enqueue("quick")
        await first.result(timeout_s=10)
        await eventually(lambda: _waits(worker))
        # From here on every other poll is held up.
        assert worker.components is not None
        poll, sent = worker.components.poll, asyncio.Event()
        send = poll.call_script

        async def held_up(args: list[Any]) -> list[Any]:
            await sent.wait()
            return await send(args)

        monkeypatch.setattr(poll, "call_script", held_up)
        job = await lab.queue.enqueue("quick")

        await eventually(lambda: _has_started(runs, job.id))
        sent.set()
        assert await job.result(timeout_s=10) is None


@pytest.fixture
async def full_and_free(client: Any, prefix: str, lab: Lab) -> AsyncIterator[tuple[Runs, Worker]]:
    """A full worker that still waits for a token, and an idle one that waits behind it."""
    runs = Runs()
    # Reading abort marks, it would see the due job and push a token.
    options: dict[str, Any] = {"options": SELDOM, "max_jobs": 1, "allow_abort_jobs": False}
    functions = runs.functions
    async with running(client, prefix, functions, **options, worker_id="full") as full:
        await eventually(lambda: _waits(full))
        assert full.components is not None
        # The worker finds this job without a token.
        await client.set(lab.keys.base.job("by-itself"), job_body("hold", [], {}, now_ms=1))
        await client.zadd(lab.keys.default_queue, {"by-itself": 5})
        full.components.slots.kick.set()
        await eventually(lambda: _has_started(runs, "by-itself"))
        async with running(client, prefix, functions, **options, worker_id="free") as free:
            await eventually(lambda: _waits(free))
            assert await _waits(full)
            yield runs, full
            assert full.jobs_rescued == free.jobs_rescued == 0
            runs.go.set()


async def _has_started(runs: Runs, job_id: str) -> bool:
    return job_id in runs.by


@pytest.mark.parametrize("jobs_were", ["slow", "quick"])
async def test_a_worker_that_is_full_by_then_gives_the_job_away(
    lab: Lab,
    full_and_free: tuple[Runs, Worker],
    jobs_were: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # While jobs are quick, jobs claimed ahead may wait for a slot. This one must not.
    monkeypatch.setattr("worker.engine.slots.STALE_S", 60.0)
    runs, full = full_and_free
    assert full.components is not None
    if jobs_were == "quick":
        now = asyncio.get_running_loop().time()
        for n in range(64):
            full.components.slots.claim_ahead.ended(now - (64 - n) / 1000)
    job = await lab.queue.enqueue("quick")
    await job.result(timeout_s=10)
    assert runs.by[job.id] == "free"


@pytest.mark.parametrize("max_jobs", [1, 2])
async def test_a_poll_under_way_leaves_the_waker_a_slot_if_there_are_two(
    client: Any, prefix: str, lab: Lab, max_jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs()
    async with running(client, prefix, runs.functions, options=SELDOM, max_jobs=max_jobs) as worker:
        await eventually(lambda: _waits(worker))
        assert worker.components is not None
        slots, poll = worker.components.slots, worker.components.poll
        asked, go = asyncio.Event(), asyncio.Event()
        send = poll.call_script

        async def held_up(args: list[Any]) -> list[Any]:
            asked.set()
            await go.wait()
            return await send(args)

        monkeypatch.setattr(poll, "call_script", held_up)
        slots.kick.set()
        await asyncio.wait_for(asked.wait(), 10)
        job = await lab.queue.enqueue("quick")

        async def outcomes() -> list[str]:
            return [outcome for _, _, outcome in slots.outbox]

        expected = "unstarted" if max_jobs == 1 else "completed"
        assert await eventually(outcomes) == [expected]
        go.set()
        await job.result(timeout_s=10)
        assert list(runs.by) == [job.id]


async def test_a_worker_whose_last_slot_is_taken_stops_waiting(
    client: Any, prefix: str, lab: Lab
) -> None:
    runs = Runs()
    async with running(client, prefix, runs.functions, options=SELDOM, max_jobs=1) as worker:
        await eventually(lambda: _waits(worker))
        job = await lab.queue.enqueue("hold")
        await eventually(lambda: _has_started(runs, job.id))
        assert worker.components is not None
        assert not worker.components.waker.is_waiting
        runs.go.set()
        await eventually(lambda: _waits(worker))


async def test_a_server_that_forgot_the_script_gets_it_again(
    client: Any, prefix: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[WakePoll] = []

    async def settle(_poll: Poll, polled: WakePoll) -> list[Any]:
        settled.append(polled)
        return []

    monkeypatch.setattr(Poll, "settle", settle)
    runs = Runs()
    async with running(client, prefix, runs.functions, options=SELDOM) as worker:
        for _ in range(3):
            await eventually(lambda: _waits(worker))
            await client.script_flush()
            job = await lab.queue.enqueue("quick")
            await job.result(timeout_s=10)
            await eventually(lambda: _knows_the_script(client))
        # NOSCRIPT proves that nothing was claimed, so nothing needs to be settled.
        assert not settled
        assert worker.jobs_rescued == 0


async def _knows_the_script(client: Any) -> bool:
    return bool((await client.script_exists(NEXT_JOB.sha))[0])


async def test_a_full_worker_passes_a_token_on(
    lab: Lab, full_and_free: tuple[Runs, Worker]
) -> None:
    job = await lab.queue.enqueue("quick", delay_s=0.2)
    await job.result(timeout_s=10)
    assert full_and_free[0].by[job.id] == "free"


async def test_a_worker_that_ends_claims_nothing_more(
    client: Any, prefix: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[WakePoll] = []
    make = Poll.wake_poll

    def noted(poll: Poll) -> WakePoll:
        made.append(make(poll))
        return made[-1]

    monkeypatch.setattr(Poll, "wake_poll", noted)
    worker = new_worker(client, prefix, Runs().functions, options=SELDOM)
    main = asyncio.create_task(worker.main())
    await eventually(lambda: _waits(worker))
    worker.drain()
    async with asyncio.timeout(10):
        await main
    await lab.queue.enqueue("quick", job_id="a")
    # A late copy of its last wake poll.
    assert await lab.run(made[-1]) == []


async def test_a_burst_counts_its_jobs(client: Any, prefix: str, lab: Lab) -> None:
    runs = Runs()
    await lab.queue.enqueue("quick", delay_s=3600)  # the burst waits for it
    worker = new_worker(
        client, prefix, runs.functions, burst=True, max_burst_jobs=1, options=SELDOM
    )
    main = asyncio.create_task(worker.main())

    async def waits() -> bool:
        return bool((await client.info("clients"))["blocked_clients"])

    await eventually(waits)
    for _ in range(3):
        await lab.queue.enqueue("quick")
    async with asyncio.timeout(20):
        await main
    assert len(runs.by) == 1


async def test_a_wait_that_the_server_refuses_is_logged_once(
    client: Any,
    prefix: str,
    lab: Lab,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.engine.wake.RETRY_S", 0.01)
    waits: list[WakePoll] = []
    settle = Poll.settle

    async def noted(poll: Poll, polled: WakePoll) -> list[Any]:
        waits.append(polled)
        return await settle(poll, polled)

    monkeypatch.setattr(Poll, "settle", noted)
    await client.set(lab.keys.wake, "not a set of tokens")
    async with running(client, prefix, Runs().functions, options=SELDOM):

        async def was_refused_often() -> bool:
            return len(waits) > 3

        await eventually(was_refused_often)
    assert caplog.text.count("wake.refused") == 1
