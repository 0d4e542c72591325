"""Pauses of a priority or a function: what they hold, what they let through, and their end."""

from __future__ import annotations

import time
from typing import Any

import pytest
from arq.worker import func

from tests.support.engine import burst, running
from tests.support.queues import queue_of, stores_of
from tests.support.wait import eventually
from worker import Priority, call
from worker.client import JobQueue
from worker.engine import EngineOptions
from worker.engine.poll import Poll
from worker.engine.records import Claim, PollResult, read_claims
from worker.errors import InvalidArgument
from worker.keys import HELD_MS, EngineKeys
from worker.queue.pauses import MOST_PAUSES

pytestmark = pytest.mark.integration


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix)


@pytest.fixture
def keys(queue: JobQueue) -> EngineKeys:
    return EngineKeys(stores_of(queue).keys)


@pytest.fixture
def poll(client: Any, keys: EngineKeys) -> Poll:
    return Poll(client, keys, EngineOptions(), worker_id="w")


def ids(polled: PollResult) -> list[str]:
    return [claim.job_id for claim in polled.claims]


async def give_back(poll: Poll, claims: list[Claim]) -> None:
    await poll.run([claim.end("back", {"due": claim.due}) for claim in claims], 0)


async def test_a_paused_function_waits_and_others_run(queue: JobQueue, poll: Poll) -> None:
    assert await queue.pause(function="slow")
    await queue.enqueue_many([call("slow", job_id=f"s{n}") for n in range(5)])
    await queue.enqueue("quick", job_id="q")
    assert ids(await poll.run([], 1)) == ["q"]
    (pause,) = await queue.paused()
    assert (pause.function, pause.priority, pause.waiting) == ("slow", None, 5)
    assert await queue.resume(function="slow")
    assert await queue.paused() == []
    assert ids(await poll.run([], 9)) == [f"s{n}" for n in range(5)]


async def test_a_paused_priority_waits_and_others_run(queue: JobQueue, poll: Poll) -> None:
    assert await queue.pause(priority=Priority.HIGH)
    await queue.enqueue("f", job_id="h", priority=Priority.HIGH)
    await queue.enqueue("f", job_id="l", priority=Priority.LOW)
    polled = await poll.run([], 9)
    assert (ids(polled), polled.more) == (["l"], False)
    (pause,) = await queue.paused()
    assert (pause.function, pause.priority, pause.waiting) == (None, Priority.HIGH, 1)
    assert await queue.resume(priority=Priority.HIGH)
    assert ids(await poll.run([], 9)) == ["h"]


async def test_a_held_job_costs_no_claim_and_is_moved_once(
    client: Any, queue: JobQueue, keys: EngineKeys, poll: Poll
) -> None:
    await queue.pause(function="f")
    await queue.enqueue("f", job_id="a")
    before = await client.zscore(keys.default_queue, "a")
    first = await poll.run([], 4)
    held = await client.zscore(keys.default_queue, "a")
    second = await poll.run([], 4)
    assert [ids(each) for each in (first, second)] == [[], []]
    assert (first.more, first.size, second.more) == (False, 0, False)
    assert held == before + HELD_MS
    assert not await client.exists(keys.base.in_progress("a"), keys.base.retry("a"))
    await queue.resume(function="f")
    assert await client.zscore(keys.default_queue, "a") == before
    assert not await client.exists(keys.paused, *keys.held("f"))


async def test_a_waiting_worker_obeys(queue: JobQueue, poll: Poll, client: Any) -> None:
    await poll.prepare()
    await queue.pause(function="f")
    await queue.enqueue("f", job_id="a")
    assert await client.execute_command(*poll.wake_poll().command) == []
    await queue.resume(function="f")
    rows = await client.execute_command(*poll.wake_poll().command)
    assert [claim.job_id for claim in read_claims(rows)] == ["a"]


async def test_pausing_and_resuming_twice_changes_nothing(queue: JobQueue) -> None:
    async def f(ctx: dict[str, Any]) -> None: ...

    assert await queue.pause(function="g")
    assert not await queue.pause(function="g")
    assert await queue.pause(priority=Priority.LOW)
    assert [each.function or each.priority for each in await queue.paused()] == ["low", "g"]
    assert await queue.resume(function="g")
    assert not await queue.resume(function="g")
    assert await queue.pause(function=f)
    assert await queue.resume(function=f.__qualname__)


async def test_a_pause_names_one_thing_and_there_are_few(queue: JobQueue) -> None:
    wrong: list[dict[str, Any]] = [{}, {"function": "f", "priority": Priority.LOW}]
    for given in (*wrong, {"function": ""}):
        with pytest.raises(InvalidArgument):
            await queue.pause(**given)
    with pytest.raises(InvalidArgument):
        await queue.pause(priority="urgent")  # type: ignore[arg-type]
    for n in range(MOST_PAUSES):
        await queue.pause(function=f"f{n}")
    with pytest.raises(InvalidArgument, match="resume one"):
        await queue.pause(function="one more")


async def test_a_running_job_of_a_paused_function_ends(queue: JobQueue, poll: Poll) -> None:
    await queue.enqueue("f", job_id="a")
    (claim,) = (await poll.run([], 1)).claims
    await queue.pause(function="f")
    polled = await poll.run([claim.end("retry", {"delay": 0, "tries": 1})], 4)
    assert (polled.late, ids(polled)) == ([], [])
    await queue.resume(function="f")
    (claim,) = (await poll.run([], 4)).claims
    assert claim.tries == 1


@pytest.mark.parametrize("paused", [{"function": "f"}, {"priority": Priority.DEFAULT}])
async def test_a_dead_workers_job_waits_for_the_resume(
    client: Any, queue: JobQueue, keys: EngineKeys, poll: Poll, paused: dict[str, Any]
) -> None:
    await queue.enqueue("f", job_id="a")
    (claim,) = (await poll.run([], 1)).claims
    await queue.pause(**paused)
    await client.zadd(keys.running, {"a": 1}, xx=True)
    assert ids(await poll.run([], 4)) == []
    assert not await client.exists(keys.running, keys.base.in_progress("a"))
    # The worker was not dead: its end comes too late, and nothing is lost.
    assert (await poll.run([claim.end("done", {})], 4)).late == [0]
    await queue.resume(**paused)
    assert ids(await poll.run([], 4)) == ["a"]


async def test_a_dead_workers_paused_jobs_block_no_other(
    client: Any, queue: JobQueue, keys: EngineKeys, poll: Poll
) -> None:
    await queue.enqueue_many([call("f", job_id=f"f{n}") for n in range(5)])
    await queue.enqueue("g", job_id="g")
    assert len(ids(await poll.run([], 9))) == 6
    await queue.pause(function="f")
    await client.zadd(keys.running, {"g": 2, **{f"f{n}": 1 for n in range(5)}}, xx=True)
    assert ids(await poll.run([], 1)) == ["g"]


@pytest.mark.parametrize("paused", [{"function": "f"}, {"priority": Priority.DEFAULT}])
async def test_a_paused_job_can_be_aborted(
    client: Any, prefix: str, queue: JobQueue, poll: Poll, paused: dict[str, Any]
) -> None:
    async def f(ctx: dict[str, Any]) -> None:
        pytest.fail("an aborted job ran")

    await queue.pause(**paused)
    job = await queue.enqueue("f", job_id="a")
    await queue.enqueue("f", job_id="b")
    assert ids(await poll.run([], 4)) == []
    async with running(client, prefix, [f]):
        assert await job.abort(timeout_s=20)
    await queue.resume(**paused)
    assert ids(await poll.run([], 4)) == ["b"]


async def test_a_long_line_of_paused_jobs_blocks_no_other(queue: JobQueue, poll: Poll) -> None:
    await queue.pause(function="slow")
    for _ in range(3):
        await queue.enqueue_many([call("slow") for _ in range(500)])
    await queue.enqueue("quick", job_id="q")
    polls = [await poll.run([], 1) for _ in range(4)]
    assert [each.more for each in polls] == [True, True, True, False]
    assert [ids(each) for each in polls] == [[], [], [], ["q"]]


async def test_an_interrupted_resume_is_finished_by_the_workers(
    queue: JobQueue, poll: Poll, keys: EngineKeys, client: Any
) -> None:
    await queue.pause(function="f")
    for _ in range(3):
        await queue.enqueue_many([call("f") for _ in range(500)])
    while (await poll.run([], 1)).more:
        pass
    # The client died after its first step.
    pauses = queue.jobs.pauses
    assert await pauses._change("function", "f", pause=False)
    for _ in range(4):
        await give_back(poll, (await poll.run([], 1)).claims)
    assert not await client.exists(keys.paused, *keys.held("f"))
    assert await client.zcount(keys.default_queue, HELD_MS, "+inf") == 0


async def test_a_pause_during_a_resume_keeps_what_is_held(
    queue: JobQueue, poll: Poll, keys: EngineKeys, client: Any
) -> None:
    await queue.pause(function="f")
    await queue.enqueue("f", job_id="a")
    await poll.run([], 1)
    assert await queue.jobs.pauses._change("function", "f", pause=False)
    assert await queue.pause(function="f")
    assert ids(await poll.run([], 1)) == []
    assert await client.hkeys(keys.paused) == [b"function:f"]
    await queue.resume(function="f")
    assert ids(await poll.run([], 1)) == ["a"]


async def test_workers_obey_a_pause_and_a_resume(client: Any, prefix: str, queue: JobQueue) -> None:
    ran: list[str] = []

    async def f(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job_id"])

    async def g(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job_id"])

    await queue.pause(function=f.__qualname__)
    async with running(client, prefix, [f, g]):
        held = await queue.enqueue(f, job_id="held")
        for n in range(3):
            await (await queue.enqueue(g, job_id=f"g{n}")).result(timeout_s=30)
        assert ran == ["g0", "g1", "g2"]
        assert await held.status() == "deferred"
        await queue.resume(function=f)
        await held.result(timeout_s=30)


@pytest.mark.parametrize("what", [{"function": "f"}, {"priority": Priority.DEFAULT}])
async def test_busy_workers_obey_a_pause_within_a_second(
    client: Any, prefix: str, queue: JobQueue, what: dict[str, Any]
) -> None:
    begun: list[float] = []

    async def f(ctx: dict[str, Any]) -> None:
        begun.append(time.monotonic())
        await queue.enqueue("f")  # so that there is always one more

    async def is_busy() -> bool:
        return len(begun) > 40

    async def nothing_runs() -> bool:
        return (await queue.jobs.overview()).running == 0

    await queue.enqueue_many([call("f") for _ in range(20)])
    functions = [func(f, name="f")]
    async with (
        running(client, prefix, functions, max_jobs=2),
        running(client, prefix, functions, max_jobs=2),
    ):
        await eventually(is_busy)
        await queue.pause(**what)
        paused = time.monotonic()
        # Jobs that were claimed ahead of free slots count as running.
        await eventually(nothing_runs)
    assert begun[-1] - paused < 1


async def test_a_burst_ends_when_only_paused_jobs_wait(
    client: Any, prefix: str, queue: JobQueue
) -> None:
    async def f(ctx: dict[str, Any]) -> None:
        pytest.fail("a paused job ran")

    await queue.pause(function="f")
    await queue.pause(priority=Priority.LOW)
    await queue.enqueue("f")
    await queue.enqueue("g", priority=Priority.LOW)
    assert (await burst(client, prefix, [f])).jobs_done == 0


async def test_pauses_survive_a_restart_of_the_server(
    client: Any, prefix: str, queue: JobQueue, keys: EngineKeys, poll: Poll
) -> None:
    """What is paused and held is in keys with neither a TTL nor a process behind them."""
    await queue.pause(function="f")
    await queue.pause(priority=Priority.LOW)
    await queue.enqueue("f")
    await poll.run([], 1)
    found = [key async for key in client.scan_iter(match=f"{prefix}*")]
    stays = {key.decode() for key in found if await client.pttl(key) == -1}
    assert {keys.paused, keys.held("f")[2], keys.default_queue} <= stays


async def test_odd_bodies_are_of_no_paused_function(
    client: Any, queue: JobQueue, keys: EngineKeys, poll: Poll
) -> None:
    await queue.pause(function="f")
    for n, body in enumerate(
        (b"", b"\x85\xa1t\xc0\xa1f\xd9\xff", b"\xc1" * 40, b"\x85\xa1t\xc0\xa1f\x07")
    ):
        await client.set(keys.base.job(f"odd{n}"), body)
        await client.zadd(keys.default_queue, {f"odd{n}": 1})
    await client.zadd(keys.default_queue, {"gone": 1})
    assert sorted(ids(await poll.run([], 9))) == ["gone", "odd0", "odd1", "odd2", "odd3"]


async def test_long_names_are_read_as_well(queue: JobQueue, poll: Poll) -> None:
    names = ["n" * size for size in (31, 32, 255, 256)]
    for name in names:
        await queue.pause(function=name)
        await queue.enqueue(name)
    await queue.enqueue("n" * 33, job_id="other")
    assert ids(await poll.run([], 9)) == ["other"]
    assert [each.waiting for each in await queue.paused()] == [1, 1, 1, 1]
