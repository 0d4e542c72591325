"""Jobs with an unknown function wait quietly, and are counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from arq.worker import func

from tests.support.engine import QUICK, burst, running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker import Priority
from worker.engine.parking import ParkedReport
from worker.keys import QueueKeys

pytestmark = pytest.mark.integration


async def known(ctx: dict[str, Any]) -> None: ...


async def test_parked_jobs_are_one_line_a_function_and_counted(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    with structlog.testing.capture_logs() as logs:
        for number in range(20):
            await queue.enqueue(f"unknown_{number % 2}", priority=Priority.HIGH)
        await queue.enqueue("unknown_0", priority=Priority.LOW)
        functions = [func(known, name="known")]
        # Two workers: the second one shares the minute of the first.
        async with (
            running(client, prefix, functions, options=QUICK),
            running(client, prefix, functions, options=QUICK),
        ):

            async def parked() -> bool:
                stats = await queue.stats()
                return (stats["high"]["parked"], stats["low"]["parked"]) == (20, 1)

            await eventually(parked)
            done = await queue.enqueue("known")
            await done.result(timeout_s=10)
    lines = [line["task"] for line in logs if line["event"] == "job.parked"]
    assert sorted(lines) == ["unknown_0", "unknown_1"]


async def test_a_parked_job_that_dies_is_logged(client: Any, prefix: str) -> None:
    await queue_of(client, prefix).enqueue("unknown", job_id="a")
    with structlog.testing.capture_logs() as logs:
        await burst(client, prefix, [func(known, name="known")])
    (died,) = [line for line in logs if line["event"] == "job.died"]
    assert (died["job_id"], died["task"], died["reason"]) == ("a", "unknown", "unknown")


async def test_more_unknown_functions_than_remembered_are_not_logged(
    client: Any, prefix: str
) -> None:
    tasks: list[asyncio.Task[None]] = []
    report = ParkedReport(
        client,
        QueueKeys(prefix),
        spawn=lambda _, told: tasks.append(asyncio.create_task(told)),
    )
    with structlog.testing.capture_logs() as logs:
        for number in range(1000):
            report.note("a", f"unknown_{number}")
        await asyncio.gather(*tasks)
    assert len(logs) == 100
