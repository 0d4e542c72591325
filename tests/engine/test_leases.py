"""Leases and fencing on real processes: kill -9, SIGSTOP, a blocked loop, poison."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cache.encoding.codec import decode
from tests.support.engine_process import Ledger, process
from tests.support.queues import queue_of
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

NEIGHBORS = 20


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


async def _lines(ledger: Ledger, kind: str, count: int = 1) -> list[list[str]]:
    found = ledger.of(kind)
    return found if len(found) >= count else []


async def test_after_kill_9_a_job_runs_again_within_its_lease(
    client: Any, prefix: str, valkey_url: str, ledger: Ledger
) -> None:
    job = await queue_of(client, prefix).enqueue("hold", 3600)
    with process(valkey_url, prefix, ledger) as first:
        await eventually(lambda: _lines(ledger, "start"), deadline_s=60)
        with process(valkey_url, prefix, ledger):
            await eventually(lambda: _two_workers(client, prefix), deadline_s=60)
            first.kill()
            lines = await eventually(lambda: _lines(ledger, "start", 2), deadline_s=20)
            # The same try: a worker's death charges the job nothing.
            assert [line[1:2] + line[3:] for line in lines] == [[job.id, "1"]] * 2


async def _two_workers(client: Any, prefix: str) -> bool:
    return bool(await client.zcard(f"{prefix}workers") == 2)


async def test_a_stopped_owner_cannot_end_or_overwrite_the_job(
    client: Any, prefix: str, valkey_url: str, ledger: Ledger
) -> None:
    queue = queue_of(client, prefix)
    with process(valkey_url, prefix, ledger) as stopped:
        job = await queue.enqueue("hold", 0.5)
        await eventually(lambda: _lines(ledger, "start"), deadline_s=60)
        os.kill(stopped.pid, signal.SIGSTOP)
        with process(valkey_url, prefix, ledger) as other:
            assert await job.result(timeout_s=30) == other.pid
            before = await client.get(f"{prefix}result:{job.id}")
            os.kill(stopped.pid, signal.SIGCONT)
            log = ledger.path.with_suffix(".log")
            await eventually(lambda: _says(log, "lease.lost", "job.ended_late"), deadline_s=60)
            assert await client.get(f"{prefix}result:{job.id}") == before
            assert decode(before)["r"] == other.pid


async def _says(log: Path, *events: str) -> bool:
    text = await asyncio.to_thread(log.read_text)
    return any(event in text for event in events)


async def test_a_blocked_event_loop_keeps_its_leases(
    client: Any, prefix: str, valkey_url: str, ledger: Ledger
) -> None:
    job = await queue_of(client, prefix).enqueue("block", 3 * 2.0)
    with (
        process(valkey_url, prefix, ledger, lease_s=2.0),
        process(valkey_url, prefix, ledger, lease_s=2.0),
    ):
        await job.result(timeout_s=30)
    assert len(ledger.of("start")) == 1


async def test_a_job_that_hangs_past_its_timeout_loses_its_lease(
    client: Any, prefix: str, valkey_url: str, ledger: Ledger
) -> None:
    await queue_of(client, prefix).enqueue("block_briefly", 60)
    with process(valkey_url, prefix, ledger, lease_s=1.0):
        await eventually(lambda: _lines(ledger, "start"), deadline_s=60)
        with process(valkey_url, prefix, ledger, lease_s=1.0):
            lines = await eventually(lambda: _lines(ledger, "start", 2), deadline_s=20)
    assert lines[0][2] != lines[1][2]


async def test_a_job_that_cannot_start_behind_a_hung_one_runs_elsewhere(
    client: Any, prefix: str, valkey_url: str, ledger: Ledger
) -> None:
    queue = queue_of(client, prefix)
    # The hung job's timeout is an hour, so its own lease is renewed all the time.
    # Within one millisecond, the lesser id comes first.
    await queue.enqueue("block_once", 90, job_id="a-hung")
    behind = await queue.enqueue("hold", 0, job_id="behind")
    # Long enough to be renewed in time on a busy machine.
    with process(valkey_url, prefix, ledger, lease_s=3.0):
        await eventually(lambda: _lines(ledger, "start"), deadline_s=60)
        # They were claimed together.
        assert await client.zcard(f"{prefix}queue:running") == 2
        with process(valkey_url, prefix, ledger, lease_s=3.0) as other:
            assert await behind.result(timeout_s=60) == other.pid
    assert _starts(ledger, behind.id) == 1


async def test_a_job_that_kills_its_workers_is_poison_after_three(
    client: Any, prefix: str, valkey_url: str, ledger: Ledger
) -> None:
    queue = queue_of(client, prefix)
    job = await queue.enqueue("die")

    async def is_dead() -> bool:
        return [letter.reason for letter in await queue.dead.list()] == ["poison"]

    for deaths in (1, 2, 3):
        with process(valkey_url, prefix, ledger, lease_s=1.0) as child:
            await eventually(lambda n=deaths: _lines(ledger, "start", n), deadline_s=60)  # type: ignore[misc]
            await asyncio.to_thread(child.wait, 10)
    with process(valkey_url, prefix, ledger, lease_s=1.0):
        await eventually(is_dead, deadline_s=60)
    assert len(ledger.of("start")) == 3
    assert await client.exists(f"{prefix}job:{job.id}", f"{prefix}in-progress:{job.id}") == 0


async def test_jobs_beside_a_worker_killer_do_not_become_poison(
    client: Any, prefix: str, valkey_url: str, ledger: Ledger
) -> None:
    queue = queue_of(client, prefix)
    innocents = [
        await queue.enqueue("hold", 0.2, job_id=f"innocent-{n:02}") for n in range(NEIGHBORS)
    ]
    # Its id sorts last in every claim, so the others run already when it kills.
    killer = await queue.enqueue("die", job_id="killer")
    deaths = 0

    async def is_over() -> bool:
        return not await client.exists(f"{prefix}queue")

    async with asyncio.timeout(90):
        while not await is_over():
            with process(valkey_url, prefix, ledger, lease_s=1.0, MAX_JOBS="32") as child:
                await eventually(lambda: _either(is_over(), child), deadline_s=50)
                deaths += child.poll() is not None
    assert deaths == 3
    letters = await queue.dead.list()
    assert [(letter.id, letter.reason) for letter in letters] == [(killer.id, "poison")]
    assert {line[1] for line in ledger.of("end")} == {job.id for job in innocents}
    # Each ran beside the killer twice, or the test proves nothing.
    assert all(_starts(ledger, job.id) == 3 for job in [*innocents, killer])


def _starts(ledger: Ledger, job_id: str) -> int:
    return sum(line[1] == job_id for line in ledger.of("start"))


async def _either(is_over: Any, child: Any) -> bool:
    return bool(await is_over or child.poll() is not None)
