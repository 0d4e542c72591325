"""
Random faults, checked against a ledger outside Valkey.

Three worker processes run behind a fault proxy. The seeded faults: kill -9, SIGSTOP and TERM
of workers; kill -9 and SIGSTOP of the server (with its append-only file); killed connections;
replies cut off after the server executed. The short run has every kind of fault;
`make soak SEED= MINUTES=` runs longer, and on Sentinel and a cluster, too, where the server's
faults are failovers.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cache.connection.pool import OUTAGE
from cache.encoding import codec
from tests.support.engine_process import TRIES, Ledger, process
from tests.support.queues import queue_of
from tests.support.struck import OneServer, Replicated, struck
from tests.support.wait import eventually
from worker import call
from worker.client import JobQueue
from worker.errors import QueueUnavailable
from worker.keys import EngineKeys, QueueKeys
from worker.queue.calls import Call
from worker.queue.priority import Priority

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("SOAK_SEED", "1"))
MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
WORKERS, CONCURRENCY = 3, 8
JOBS = 400 if not MINUTES else int(2000 * MINUTES)
BATCH = 20
# Of the workers; tests/support/struck.py has those of the server.
FAULTS = ["kill", "stop", "term"]
# Leases may lapse in these, and a failover may lose the ends of jobs.
SILENT = ["server killed", "server hung", "handed over"]
STRIKES = 10 if not MINUTES else int(40 * MINUTES)
LEASE_S = 1.0


class Fleet:
    """Replaces workers that die, and has the server struck."""

    def __init__(self, home: Path, server: OneServer | Replicated, rng: random.Random) -> None:
        self.ledger = Ledger(home / "ledger")
        self.struck: Counter[str] = Counter()
        self.server = server
        self._rng = rng
        self._workers: list[tuple[ExitStack, subprocess.Popen[bytes]]] = []

    def start_worker(self) -> None:
        stack = ExitStack()
        # A job may survive many kills here; other tests cover poison.
        more = {"MAX_LOST_LEASES": "100", "MAX_JOBS": str(CONCURRENCY), **self.server.env}
        child = stack.enter_context(
            process(self.server.url, self.server.prefix, self.ledger, lease_s=LEASE_S, **more)
        )
        self._workers.append((stack, child))

    async def strike(self, fault: str) -> None:
        self.struck[fault] += 1
        if fault in self.server.faults:
            await self.server.strike(fault, self._outage_logged)
        else:
            await asyncio.to_thread(self._strike_worker, fault)

    def _strike_worker(self, fault: str) -> None:
        index = self._rng.randrange(len(self._workers))
        stack, child = self._workers[index]
        if fault == "stop":
            child.send_signal(signal.SIGSTOP)
            return
        child.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(10)
        stack.close()
        self._workers.pop(index)
        self.start_worker()

    async def has_struck(self, count: int) -> bool:
        return self.struck.total() >= count

    async def _outage_logged(self) -> None:
        """Wait for a logged outage; none comes when all workers are stopped or logged one lately."""
        said = self._outages()

        async def more() -> bool:
            return self._outages() > said

        with suppress(AssertionError):
            await eventually(more, deadline_s=4)

    def _outages(self) -> int:
        log = self.ledger.path.with_suffix(".log")
        return log.read_text(errors="replace").count("queue.unreachable")

    def wake_all(self) -> None:
        for _, child in self._workers:
            child.send_signal(signal.SIGCONT)

    def exit_codes(self) -> list[int | None]:
        return [child.poll() for _, child in self._workers]

    def close(self) -> None:
        for stack, _ in self._workers:
            stack.close()


@asynccontextmanager
async def fleet(config: pytest.Config, home: Path, rng: random.Random) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(struck(config, home, rng))
        found = Fleet(home, server, rng)
        stack.callback(found.close)
        for _ in range(WORKERS):
            found.start_worker()
        yield found


def calls(rng: random.Random) -> list[Call]:
    found = []
    for n in range(JOBS):
        name = rng.choice(["hold"] * 6 + ["fail_once"] * 2 + ["fail_always"])
        args = [rng.choice([0, 0.01, 0.05])] if name == "hold" else []
        priority, delay_s = rng.choice(list(Priority)), rng.choice([0, 0, 0.5])
        job_id = f"{name}-{n}"
        then = call("follow", job_id=f"follow-{n}") if name == "hold" and n % 5 == 0 else None
        found.append(
            call(name, *args, job_id=job_id, priority=priority, delay_s=delay_s, then=then)
        )
    return found


async def produce(
    ships: Fleet, queue: JobQueue, wanted: list[Call], acknowledged: Counter[str]
) -> None:
    """
    Enqueue all, each batch until it is acknowledged; counts how often each was sent.

    A failover takes seconds, in which everything would be done. There, batches wait for strikes.
    """
    replicas = ships.server.replicas
    for at in range(0, len(wanted), BATCH):
        if replicas:
            due = at * STRIKES // len(wanted) - 3
            await eventually(partial(ships.has_struck, due), deadline_s=300)
        batch = wanted[at : at + BATCH]
        sending = partial(_is_acknowledged, queue, batch, acknowledged, replicas)
        await eventually(sending, deadline_s=300)


async def _is_acknowledged(
    queue: JobQueue, batch: list[Call], acknowledged: Counter[str], replicas: int
) -> bool:
    acknowledged.update(str(one.job_id) for one in batch)
    with suppress(QueueUnavailable):
        jobs = await queue.enqueue_many(batch, wait_replicas=replicas)
        return not any(job.confirmed is False for job in jobs)
    return False


@pytest.mark.serial
@pytest.mark.timeout(180 + 180 * MINUTES)
async def test_every_acknowledged_job_ends_once_through_all_faults(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    wanted = calls(rng)
    async with AsyncExitStack() as stack:
        ships = await stack.enter_async_context(fleet(pytestconfig, tmp_path, rng))
        client = await stack.enter_async_context(ships.server.client())
        queue = queue_of(client, ships.server.prefix)
        stack.push_async_callback(queue.aclose)
        faults = [*FAULTS, *ships.server.faults]
        plan = faults + rng.choices(faults, k=STRIKES - len(faults))
        rng.shuffle(plan)
        sent: Counter[str] = Counter()
        producer = asyncio.create_task(produce(ships, queue, wanted, sent))
        for number, fault in enumerate(plan):
            part = len(wanted) * (number + 1) // (len(plan) + 2)
            with suppress(AssertionError):
                await eventually(lambda n=part: _ended(ships, n), deadline_s=4)  # type: ignore[misc]
            await ships.strike(fault)
            if number % 3 == 2:
                ships.wake_all()
        ships.wake_all()
        await producer
        keys = EngineKeys(QueueKeys(ships.server.prefix))
        await eventually(lambda: _is_empty(client, keys), deadline_s=90 + 90 * MINUTES)
        await check(client, queue, ships, sent)


async def _ended(ships: Fleet, count: int) -> bool:
    return len({line[1] for line in ships.ledger.of("end")}) >= count


async def _is_empty(client: Any, keys: EngineKeys) -> bool:
    try:
        return not await client.exists(*keys.queues)
    except OUTAGE:
        return False


async def check(client: Any, queue: JobQueue, ships: Fleet, sent: Counter[str]) -> None:
    """Check that each job is done or dead, ran no more often than faults explain, and left no keys."""
    runners: dict[str, list[str]] = {}
    for line in ships.ledger.of("end"):
        runners.setdefault(line[1], []).append(line[2])
    ends = Counter({id_: len(pids) for id_, pids in runners.items()})
    started = ships.ledger.of("start")
    starts = Counter(line[1] for line in started)
    struck, prefix = ships.struck.total(), ships.server.prefix
    letters = {letter.id: letter for letter in await queue.dead.list(limit=JOBS)}
    doomed = {id_ for id_ in sent if id_.startswith("fail_always")}
    chained = {f"follow-{n}" for n in range(0, JOBS, 5) if f"hold-{n}" in sent}

    assert set(letters) == doomed
    assert {(x.reason, x.tries) for x in letters.values()} == {("exhausted", TRIES)}
    assert set(ends) == set(sent) - doomed | chained, "an acknowledged job never ran to its end"
    assert ships.exit_codes() == [None] * WORKERS, "a fault ended a worker"
    for id_ in set(sent) | chained:
        tries = TRIES if id_ in doomed else 2 if id_.startswith("fail") else 1
        again = max(sent[id_], sent[id_.replace("follow", "hold")])
        assert starts[id_] <= tries * again + struck, f"{id_} ran {starts[id_]} times"
        result = codec.decode(await client.get(f"{prefix}result:{id_}"))
        assert (str(result["r"]) in runners.get(id_, [])) == result["s"] == (id_ not in doomed)
    await check_history(queue, sent, chained)
    # Neither shutdowns nor lost leases charge a try.
    held = [line for line in started if line[1].startswith(("hold", "follow"))]
    assert {line[3] for line in held} == {"1"}
    # A job ends twice only if its lease was lost while it ran, or an enqueue was sent again.
    resent = sum(count - 1 for count in sent.values()) * 2
    lost = sum(ships.struck[fault] for fault in FAULTS)
    lost += WORKERS * sum(ships.struck[fault] for fault in SILENT)
    # A failover also loses the ends that no replica had yet: as many as the load makes it.
    if not ships.server.replicas:
        assert sum(count - 1 for count in ends.values()) <= CONCURRENCY * lost + resent
    left = [key async for key in client.scan_iter(f"{prefix}*")]
    kinds = {key.split(b":")[1].partition(b"-")[0] for key in left}
    assert kinds <= {
        b"poll",
        b"worker",
        b"workers",
        b"queue",
        b"result",
        b"dead",
        b"history",
        b"confirm",
    }, left
    assert not await client.exists(f"{prefix}queue:running")


async def check_history(queue: JobQueue, sent: Counter[str], chained: set[str]) -> None:
    """Check that each end is counted once: more than one for a job only if it was sent again."""
    counted: Counter[tuple[str, str]] = Counter()
    for series in await queue.history():
        total = series.total
        for outcome in ("completed", "dead", "retried", "aborted"):
            counted[series.function, outcome] += getattr(total, outcome)
        ended = total.completed + total.retried + total.dead
        assert total.run.count == total.wait.count == ended
    expected: dict[tuple[str, str], set[str]] = {("follow", "completed"): chained}
    for name in ("hold", "fail_once"):
        expected[name, "completed"] = {id_ for id_ in sent if id_.rsplit("-", 1)[0] == name}
    expected["fail_always", "dead"] = {id_ for id_ in sent if id_.startswith("fail_always")}
    for key, ids in expected.items():
        again = sum(sent[id_.replace("follow", "hold")] - 1 for id_ in ids)
        assert len(ids) <= counted[key] <= len(ids) + again, key
    dead = counted["fail_always", "dead"]
    assert counted["fail_always", "retried"] == (TRIES - 1) * dead
    assert counted["fail_once", "retried"] == counted["fail_once", "completed"]
    assert {key for key, count in counted.items() if count} == {
        *expected,
        ("fail_always", "retried"),
        ("fail_once", "retried"),
    }
