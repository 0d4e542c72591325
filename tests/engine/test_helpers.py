"""Helper tasks that die are logged and start again; none dies in silence."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from arq.worker import func

from cache.encoding import codec
from tests.support.engine import new_worker, running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker import call
from worker.helpers import keep_running, run_once


class Dying:
    """A helper that raises what is left in `deaths`, and then returns."""

    def __init__(self, *deaths: BaseException) -> None:
        self.deaths = list(deaths)
        self.starts = 0

    async def __call__(self) -> None:
        self.starts += 1
        if self.deaths:
            raise self.deaths.pop()


async def nothing(ctx: dict[str, Any]) -> None: ...


@pytest.mark.unit
async def test_a_helper_that_dies_is_logged_and_started_again() -> None:
    # A canceled future that a helper awaited is no cancellation of the helper.
    helper = Dying(ValueError("no"), asyncio.CancelledError(), SystemExit(1))
    with structlog.testing.capture_logs() as logs:
        await keep_running("dying", helper, pause_s=0)
    assert helper.starts == 4
    assert [(line["event"], line["error"]) for line in logs] == [
        ("helper.died", kind) for kind in ("SystemExit", "CancelledError", "ValueError")
    ]


@pytest.mark.unit
async def test_a_canceled_helper_ends() -> None:
    task = asyncio.create_task(keep_running("hanging", asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.unit
async def test_a_helper_of_one_run_reports_its_death() -> None:
    assert not await run_once("dying", Dying(ValueError("no"))())
    assert await run_once("fine", Dying()())


@pytest.mark.integration
async def test_a_worker_whose_helper_was_canceled_ends(client: Any, prefix: str) -> None:
    worker = new_worker(client, prefix, [nothing])
    main = asyncio.create_task(worker.main())
    heartbeat = await eventually(_named("heartbeat"))

    async def is_draining() -> bool:
        heartbeat.cancel()  # redis-py can take one for a failed connect, and lose it
        return worker.is_draining

    await eventually(is_draining)
    await asyncio.wait_for(main, 10)


def _named(name: str) -> Any:
    async def look() -> Any:
        return next((task for task in asyncio.all_tasks() if task.get_name() == name), None)

    return look


@pytest.mark.integration
async def test_a_heartbeat_that_dies_beats_again(client: Any, prefix: str) -> None:
    worker = new_worker(client, prefix, [nothing], health_check_interval=0.3)
    failures = [ValueError("first"), SystemExit(1)]
    written = asyncio.Event()

    async def write_health(interval_s: float) -> None:
        if failures:
            raise failures.pop()
        written.set()

    worker.write_health = write_health  # type: ignore[method-assign]
    main = asyncio.create_task(worker.main())
    await asyncio.wait_for(written.wait(), 10)
    worker.force()
    await asyncio.wait_for(main, 10)


@pytest.mark.integration
async def test_a_schedule_that_raises_does_not_stop_the_worker(client: Any, prefix: str) -> None:
    runs: list[str] = []

    async def tick(ctx: dict[str, Any]) -> None:
        runs.append(ctx["job_id"])

    failures = [SystemExit(1)]

    def serializer(fields: Any) -> bytes:
        if failures:
            raise failures.pop()
        return codec.encode(fields)

    queue = queue_of(client, prefix)
    async with running(client, prefix, [func(tick, name="tick")], job_serializer=serializer):
        await queue.schedule("s", call("tick"), every_s=0.05)
        await eventually(_found(runs))
    assert not failures


def _found(runs: list[str]) -> Any:
    async def look() -> bool:
        return bool(runs)

    return look
