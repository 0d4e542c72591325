"""
Chaos, checked against a ledger outside Valkey.

Three processes, seeded kill -9, SIGSTOP, TERM, a server restart with its
append-only file, killed connections. `make soak SEED= MINUTES=` runs it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cache.pool import OUTAGE, PoolOptions, open_pool
from tests.support.engine_process import Ledger, process
from tests.support.servers import free_port, valkey
from tests.support.wait import eventually
from worker import call
from worker.client import JobQueue
from worker.policy.calls import Call
from worker.policy.priority import Priority

SEED = int(os.environ.get("SOAK_SEED", "1"))
MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
WORKERS = 3
JOBS = 400 if not MINUTES else int(2000 * MINUTES)
FAULTS = 6 if not MINUTES else int(40 * MINUTES)
LEASE_S = 1.0


class Fleet:
    """Workers that are replaced when they die, and a server that comes back."""

    def __init__(self, home: Path, rng: random.Random) -> None:
        self.home = home
        self.rng = rng
        self.ledger = Ledger(home / "ledger")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.kills = 0
        self._server = ExitStack()
        self._workers: list[tuple[ExitStack, subprocess.Popen[bytes]]] = []

    def start_server(self) -> None:
        options = ("--appendonly", "yes", "--appendfsync", "always")
        self._server.enter_context(valkey(self.home / "server", *options, port=self.port))

    def restart_server(self) -> None:
        self._server.close()
        self.start_server()

    def start_worker(self) -> None:
        stack = ExitStack()
        child = stack.enter_context(
            # A job may meet many kills here: poison has a test of its own.
            process(self.url, "arq:", self.ledger, lease_s=LEASE_S, MAX_LOST_LEASES="100")
        )
        self._workers.append((stack, child))

    def strike(self) -> str:
        index = self.rng.randrange(len(self._workers))
        stack, child = self._workers[index]
        fault = self.rng.choice(["kill", "kill", "stop", "term", "restart"])
        if fault == "restart":
            self.restart_server()
        elif fault == "stop":
            child.send_signal(signal.SIGSTOP)
        else:
            child.send_signal(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(10)
            stack.close()
            self._workers.pop(index)
            self.start_worker()
        self.kills += fault != "restart"
        return fault

    def wake_all(self) -> None:
        for _, child in self._workers:
            child.send_signal(signal.SIGCONT)

    def close(self) -> None:
        for stack, _ in self._workers:
            stack.close()
        self._server.close()


@contextmanager
def fleet(home: Path, rng: random.Random) -> Iterator[Fleet]:
    found = Fleet(home, rng)
    try:
        found.start_server()
        for _ in range(WORKERS):
            found.start_worker()
        yield found
    finally:
        found.close()


def calls(rng: random.Random) -> list[Call]:
    found = []
    for n in range(JOBS):
        name = rng.choice(["hold", "hold", "hold", "fail_once"])
        args = [rng.choice([0, 0.01, 0.05])] if name == "hold" else []
        priority, delay_s = rng.choice(list(Priority)), rng.choice([0, 0, 0.5])
        found.append(call(name, *args, job_id=f"job{n}", priority=priority, delay_s=delay_s))
    return found


@pytest.mark.serial
@pytest.mark.timeout(120 + 120 * MINUTES)
async def test_every_acknowledged_job_ends_once_through_kills_stops_and_restarts(
    tmp_path: Path,
) -> None:
    rng = random.Random(SEED)
    with fleet(tmp_path, rng) as ships:
        async with open_pool(ships.url, PoolOptions(retries=0), name="chaos") as client:
            queue = JobQueue(client)
            handles = await queue.enqueue_many(calls(rng))
            for strike in range(FAULTS):
                done = JOBS * (strike + 1) // (FAULTS + 2)
                with suppress(AssertionError):
                    await eventually(lambda n=done: _ended(ships, n), deadline_s=4)  # type: ignore[misc]
                await asyncio.to_thread(ships.strike)
                if strike % 3 == 2:
                    ships.wake_all()
            ships.wake_all()
            await eventually(lambda: _is_empty(client), deadline_s=60 + 60 * MINUTES)
            await check(client, queue, ships, [handle.id for handle in handles])


async def _ended(ships: Fleet, count: int) -> bool:
    return len({line[1] for line in ships.ledger.of("end")}) >= count


async def _is_empty(client: Any) -> bool:
    try:
        return not await client.exists(
            *("arq:queue", "arq:queue:critical", "arq:queue:high", "arq:queue:low")
        )
    except OUTAGE:
        return False


async def check(client: Any, queue: JobQueue, ships: Fleet, ids: list[str]) -> None:
    ends = Counter(line[1] for line in ships.ledger.of("end"))
    starts = Counter(line[1] for line in ships.ledger.of("start"))
    dead = {letter.id for letter in await queue.dead.list(limit=JOBS)}
    assert not dead
    assert set(ends) == set(ids), "an acknowledged job never ran to its end"
    for id_ in ids:
        # A job that fails once has two starts by right.
        assert starts[id_] <= 2 + ships.kills, f"{id_} ran {starts[id_]} times"
        assert await client.exists(f"arq:result:{id_}")
    # Twice is allowed only where a worker was killed or stopped over it.
    assert sum(count - 1 for count in ends.values()) <= 8 * ships.kills
    left = [key async for key in client.scan_iter("arq:*") if b"result:" not in key]
    kinds = {key.split(b":")[1] for key in left}
    assert kinds <= {b"turn", b"worker", b"workers", b"queue"}, left
    assert not await client.exists("arq:queue:running")
