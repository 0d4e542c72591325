"""
Walks every transition of a job's states (docs/states.md) on a real server.

A row of the page's table without a walk fails, and so does a walk without a row.
A state is read from the keys, never assumed.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from arq.cron import cron

from cache.encoding import codec
from cache.encoding.codec import lua_text
from tests.support.engine import burst
from tests.support.queues import queue_of, stores_of
from tests.support.wait import eventually
from worker import Priority, call
from worker.client import JobQueue
from worker.engine import EngineOptions
from worker.engine.cron import CronRunner
from worker.engine.leases import renew
from worker.engine.poll import Poll
from worker.engine.records import Claim, PollResult, read_claims
from worker.engine.schedules import ScheduleRunner
from worker.keys import HELD_MS, EngineKeys, QueueKeys
from worker.queue.job import Job

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "states.md"
HOUR_MS = 3_600_000
Arrow = tuple[str, str, str]


def _section() -> str:
    return PAGE.read_text().split("\n## ")[1]


def arrows() -> set[Arrow]:
    """Return (from, event, to) of each table row; a row may have several states on a side."""
    found: set[Arrow] = set()
    for line in _section().splitlines():
        if line.startswith("| ") and not line.startswith("| from "):
            origin, event, to = [cell.strip() for cell in line.split("|")[1:4]]
            found |= {(a, event, b) for a in origin.split(", ") for b in to.split(", ")}
    return found


@dataclass(slots=True)
class Walk:
    """One job on one server under one prefix: `JOB`, unless a walk uses another."""

    client: Any
    prefix: str
    queue: JobQueue
    keys: EngineKeys

    def poll(self, **options: Any) -> Poll:
        """Return a `Poll` of a new worker."""
        name = uuid.uuid4().hex
        return Poll(self.client, self.keys, EngineOptions(**options), worker_id=name)

    async def state(self, id_: str) -> str:
        """Read the state from the keys; AssertionError when they contradict each other."""
        base = self.keys.base
        queued = [await self.client.zscore(name, id_) for name in self.keys.queues]
        due = [score for score in queued if score is not None]
        has_body = bool(await self.client.exists(base.job(id_)))
        claim = await self.client.get(base.in_progress(id_))
        is_running = await self.client.zscore(self.keys.running, id_) is not None
        dead = await self.client.zscore(base.dead, id_) is not None
        assert dead == bool(await self.client.exists(base.dead_job(id_)))
        assert has_body == bool(due)
        assert len(due) <= 1
        assert bool(claim) == is_running
        assert not (has_body and dead)
        if dead:
            return "dead"
        if not has_body:
            return "done" if await self.client.exists(base.result(id_)) else "gone"
        if is_running:
            return "running"
        if await self.client.hexists(base.parked, id_):
            return "parked"
        if due[0] >= HELD_MS:
            return "paused"
        return "queued" if due[0] <= time.time() * 1000 else "deferred"

    async def claim(self) -> Claim:
        (claim,) = (await self.poll().run([], 1)).claims
        return claim

    async def end(self, kind: str, claim: Claim, **details: Any) -> PollResult:
        return await self.poll().run([claim.end(kind, details)], 0)

    async def lapse(self, id_: str) -> None:
        assert await self.client.zadd(self.keys.running, {id_: 1}, xx=True, ch=True)

    async def lose(self, id_: str, times: int) -> None:
        for _ in range(times):
            await self.claim()
            await self.lapse(id_)


JOB = "a"
Step = Callable[[Walk], Awaitable[Any]]
WALKS: dict[Arrow, tuple[Step, Step]] = {}


def walks(origin: str, event: str, *to: str, start: Step | None = None) -> Callable[[Step], Step]:
    """Register a walk: `start` brings the job to its first state, the function to the next."""

    def register(step: Step) -> Step:
        for state in to:
            arrow = (origin, event, state)
            assert arrow not in WALKS
            WALKS[arrow] = (start or STARTS[origin], step)
        return step

    return register


async def _nothing(_walk: Walk) -> None:
    return


async def _queued(walk: Walk) -> Job:
    return await walk.queue.enqueue("f", job_id=JOB)


async def _deferred(walk: Walk) -> Job:
    return await walk.queue.enqueue("f", job_id=JOB, delay_s=3600)


async def _running(walk: Walk) -> Claim:
    await _queued(walk)
    return await walk.claim()


async def _parked(walk: Walk) -> None:
    await walk.end("park", await _running(walk), most=HOUR_MS, reason="unknown", error="E")


async def _dead(walk: Walk) -> None:
    await walk.end("dead", await _running(walk), reason="failed", error="E", tries=1, name="f")


async def _paused(walk: Walk) -> None:
    await walk.queue.pause(function="f")
    await _queued(walk)
    await _hold(walk)


STARTS: dict[str, Step] = {
    "new": _nothing,
    "queued": _queued,
    "deferred": _deferred,
    "running": _running,
    "parked": _parked,
    "paused": _paused,
    "dead": _dead,
}


# -- new -----------------------------------------------------------------------------


@walks("new", "stored", "queued")
async def _(walk: Walk) -> None:
    await walk.queue.enqueue_many([call("f", job_id=JOB)])


@walks("new", "stored", "deferred")
async def _(walk: Walk) -> None:
    await walk.queue.enqueue_many([call("f", job_id=JOB, delay_s=3600)])


async def _end_one_before(walk: Walk, delay_ms: int) -> None:
    first = await walk.queue.enqueue("f", job_id="before")
    following = {
        "id": JOB,
        "queue": "low",
        "delay": delay_ms,
        "body": lua_text(b"body"),
    }
    await walk.end("done", await walk.claim(), result=lua_text(b"r"), ttl=HOUR_MS, jobs=[following])
    assert await walk.state(first.id) == "done"
    assert await walk.client.get(walk.keys.base.job(JOB)) == b"body"


@walks("new", "chained", "queued")
async def _(walk: Walk) -> None:
    await _end_one_before(walk, 0)


@walks("new", "chained", "deferred")
async def _(walk: Walk) -> None:
    await _end_one_before(walk, HOUR_MS)


@walks("new", "ticked", "queued")
async def _(walk: Walk) -> None:
    async def f(ctx: dict[str, Any]) -> None: ...

    now = int(time.time() * 1000)
    crons = [cron(f, name="cron:f", hour=set(range(24)), minute=0, job_id=JOB)]
    runners = [
        CronRunner(
            walk.client,
            walk.keys,
            crons,
            encode=codec.encode,
            missed="once",
            now_ms=lambda: now,
            timezone=None,
        )
        for _ in range(2)
    ]
    await walk.client.hset(walk.keys.cron, f"cron:f:{JOB}", now - 2 * HOUR_MS)
    for runner in runners:
        await runner.tick()
    # The same for a client's repeating job: each run has its own id.
    await walk.queue.schedule("s", call("f"), every_s=3600)
    (due,) = [int(score) for _, score in await _members(walk, walk.keys.schedules)]
    now = due
    for _ in range(2):
        schedules = ScheduleRunner(walk.client, walk.keys, encode=codec.encode, now_ms=lambda: now)
        await schedules.run()
    assert await walk.state(f"s:{due}:~") == "queued"
    assert await walk.client.zcard(walk.keys.default_queue) == 2


async def _members(walk: Walk, key: str) -> Any:
    return await walk.client.zrange(key, 0, -1, withscores=True)


# -- waiting -------------------------------------------------------------------------


@walks("deferred", "due", "queued")
async def _(walk: Walk) -> None:
    assert (await walk.poll().run([], 1)).claims == []
    # Let its time pass.
    await walk.client.zadd(walk.keys.default_queue, {JOB: time.time() * 1000 - 1}, xx=True)


@walks("deferred", "abort requested", "queued")
async def _(walk: Walk) -> None:
    assert await stores_of(walk.queue).jobs.abort(JOB)
    (mark,) = (await walk.poll().run([], 0)).marks
    assert mark == JOB.encode()


@walks("deferred", "run now", "queued")
async def _(walk: Walk) -> None:
    assert await walk.queue.jobs.run_now(JOB) == 1
    assert await walk.queue.jobs.run_now(JOB) == 0


@walks("queued", "claimed", "running")
@walks("parked", "claimed", "running")
async def _(walk: Walk) -> None:
    # A parked job is due after half a second, a queued one at once.
    claim = await eventually(lambda: _first(walk))
    assert await walk.client.get(walk.keys.base.in_progress(JOB)) == claim.token
    assert claim.tries == claim.stalled_count == 0
    # A waiting worker claims with another script, which must write the same.
    await walk.end("back", claim, due=claim.due)
    poll = walk.poll()
    await poll.prepare()
    [claim] = read_claims(await walk.client.execute_command(*poll.wake_poll().command))
    assert await walk.client.get(walk.keys.base.in_progress(JOB)) == claim.token
    assert claim.tries == claim.stalled_count == 0


@walks("queued", "held", "paused")
async def _hold(walk: Walk) -> None:
    due = await walk.client.zscore(walk.keys.default_queue, JOB)
    await walk.queue.pause(function="f")
    assert (await walk.poll().run([], 1)).claims == []
    assert await walk.client.zscore(walk.keys.held("f")[2], JOB) == due


@walks("paused", "released", "queued")
async def _(walk: Walk) -> None:
    due = await walk.client.zscore(walk.keys.held("f")[2], JOB)
    assert await walk.queue.resume(function="f")
    assert await walk.client.zscore(walk.keys.default_queue, JOB) == due
    assert not await walk.client.exists(walk.keys.paused, *walk.keys.held("f"))


@walks("paused", "abort requested", "queued")
async def _(walk: Walk) -> None:
    assert await stores_of(walk.queue).jobs.abort(JOB)
    claim = await walk.claim()
    assert claim.mark_ms is not None
    await walk.end("back", claim, due="1")


@walks("running", "halted", "queued")
async def _(walk: Walk) -> None:
    await walk.queue.pause(priority=Priority.DEFAULT)
    await walk.lapse(JOB)
    polled = await walk.poll().run([], 1)
    assert (polled.claims, polled.more) == ([], False)


async def _first(walk: Walk) -> Claim | None:
    claims = (await walk.poll().run([], 1)).claims
    return claims[0] if claims else None


# -- running -------------------------------------------------------------------------


async def _held(walk: Walk) -> bytes:
    return bytes(await walk.client.get(walk.keys.base.in_progress(JOB)))


@walks("running", "renewed", "running")
async def _(walk: Walk) -> None:
    await walk.lapse(JOB)
    claim = await _claim_held(walk)
    assert await renew(walk.client, walk.keys, [claim], lease_ms=15_000) == []
    assert await _held(walk) == claim.token
    assert (await walk.poll().run([], 1)).claims == []


@walks("running", "taken over", "running")
async def _(walk: Walk) -> None:
    before = await _held(walk)
    await walk.lapse(JOB)
    claim = await walk.claim()
    assert await _held(walk) == claim.token != before
    assert (claim.tries, claim.stalled_count) == (0, 1)


async def _on_its_last_chance(walk: Walk) -> None:
    await _queued(walk)
    await walk.lose(JOB, 2)


@walks("running", "put off", "running", start=_on_its_last_chance)
async def _(walk: Walk) -> None:
    before = await _held(walk)
    polled = await walk.poll().run([], 1, stalled_jobs=0)
    assert (polled.claims, polled.poisoned) == ([], [])
    assert await _held(walk) == before
    assert polled.next_due is not None
    assert 0 < polled.next_due - polled.now <= 1000


async def _claim_held(walk: Walk) -> Claim:
    """Return the current claim as its worker holds it."""
    token = await _held(walk)
    _, number, due, stalled_count = token.decode().rsplit("|", 3)
    return Claim(
        id=JOB.encode(),
        body=None,
        tries=0,
        token=token,
        number=int(number),
        due=due,
        stalled_count=int(stalled_count),
        mark_ms=None,
        job_id=JOB,
    )


@walks("running", "retried", "queued")
async def _(walk: Walk) -> None:
    await walk.end("retry", await _claim_held(walk), delay=0, tries=1)
    assert await walk.client.get(walk.keys.base.retry(JOB)) == b"1"


@walks("running", "retried", "deferred")
async def _(walk: Walk) -> None:
    await walk.end("retry", await _claim_held(walk), delay=HOUR_MS, tries=2)
    assert await walk.client.get(walk.keys.base.retry(JOB)) == b"2"


@walks("running", "given back", "queued")
async def _(walk: Walk) -> None:
    claim = await _claim_held(walk)
    await walk.end("back", claim, due=claim.due)
    assert not await walk.client.exists(walk.keys.base.retry(JOB))
    # At its old due time, before later jobs.
    assert await walk.client.zscore(walk.keys.default_queue, JOB) == float(claim.due)


@walks("running", "parked", "parked")
async def _(walk: Walk) -> None:
    claim = await _claim_held(walk)
    await walk.end("park", claim, most=HOUR_MS, reason="unknown", error="E", name="f")


# -- ended ---------------------------------------------------------------------------


@walks("running", "aborted", "done")
async def _(walk: Walk) -> None:
    assert await stores_of(walk.queue).jobs.abort(JOB)
    assert await walk.client.zscore(walk.keys.base.abort, JOB) is not None
    await walk.end("done", await _claim_held(walk), result=lua_text(b"r"), ttl=HOUR_MS)
    # A mark that stayed would abort a later job with this id.
    assert not await walk.client.exists(walk.keys.base.abort)


@walks("running", "done", "done")
async def _(walk: Walk) -> None:
    polled = await walk.end("done", await _claim_held(walk), result=lua_text(b"r"), ttl=HOUR_MS)
    assert polled.late == []
    assert await walk.client.get(walk.keys.base.result(JOB)) == b"r"


@walks("running", "buried", "dead")
async def _(walk: Walk) -> None:
    body = await walk.client.get(walk.keys.base.job(JOB))
    claim = await _claim_held(walk)
    # As for a function that stayed unknown for the whole limit.
    polled = await walk.end("park", claim, most=0, reason="unknown", error="E", tries=1, name="f")
    assert polled.buried == [0]
    letter = await walk.queue.dead.get(JOB)
    assert letter is not None
    assert (letter.reason, letter.body, letter.error) == ("unknown", body, "E")
    assert not await walk.client.exists(walk.keys.base.parked)


async def _lost_for_the_third_time(walk: Walk) -> None:
    await _queued(walk)
    await walk.lose(JOB, 3)


@walks("running", "poisoned", "dead", start=_lost_for_the_third_time)
async def _(walk: Walk) -> None:
    polled = await walk.poll().run([], 1)
    assert (polled.claims, polled.poisoned) == ([], [JOB.encode()])


# -- afterwards ----------------------------------------------------------------------


@walks("dead", "retried", "queued")
async def _(walk: Walk) -> None:
    assert await walk.queue.dead.retry(JOB) == 1
    assert (await walk.claim()).tries == 0
    await walk.end("back", await _claim_held(walk), due="1")


@walks("dead", "purged", "gone")
async def _(walk: Walk) -> None:
    assert await walk.queue.dead.purge(JOB) == 1


@walks("dead", "dropped", "gone")
async def _(walk: Walk) -> None:
    await walk.queue.enqueue("f", job_id="later")
    claim = await walk.claim()
    details = {"reason": "failed", "error": "E", "tries": 1, "name": "f"}
    polled = await walk.poll(dead_max=1).run([claim.end("dead", details)], 0)
    assert polled.dropped == 1
    assert await walk.state("later") == "dead"


# -- the page and the walks --------------------------------------------------------


def test_every_arrow_has_a_walk_and_every_walk_an_arrow() -> None:
    assert arrows() == set(WALKS)


def test_the_drawing_shows_every_state_and_event_of_the_table() -> None:
    drawing = _section().split("```")[1]
    words = set(re.findall(r"[a-z]+(?: [a-z]+)*", drawing))
    rows = arrows()
    states = {state for origin, _, to in rows for state in (origin, to)} - {"new"}
    assert words == states | {event for _, event, _ in rows}


@pytest.mark.parametrize("arrow", sorted(WALKS), ids=" ".join)
async def test_the_keys_agree_with_the_arrow(client: Any, prefix: str, arrow: Arrow) -> None:
    origin, _, to = arrow
    start, step = WALKS[arrow]
    keys = EngineKeys(QueueKeys(prefix))
    walk = Walk(client, prefix, queue_of(client, prefix), keys)
    await start(walk)
    assert await walk.state(JOB) == ("gone" if origin == "new" else origin)
    await step(walk)
    assert await walk.state(JOB) == to


@pytest.mark.parametrize("when", ["waiting", "deferred"])
async def test_a_job_that_is_aborted_before_its_start_takes_the_drawn_way(
    client: Any, prefix: str, when: str
) -> None:
    async def f(ctx: dict[str, Any]) -> None:
        pytest.fail("an aborted job ran")

    keys = EngineKeys(QueueKeys(prefix))
    queue = queue_of(client, prefix)
    walk = Walk(client, prefix, queue, keys)
    job = await queue.enqueue("f", job_id=JOB, delay_s=0 if when == "waiting" else 3600)
    assert await stores_of(queue).jobs.abort(job.id)
    assert await walk.state(JOB) == "queued"
    await burst(client, prefix, [f])
    assert await walk.state(JOB) == "done"
