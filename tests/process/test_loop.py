"""The event loop of a worker process outlives what the tasks of its jobs raise."""

from __future__ import annotations

import asyncio

import pytest

from worker.process.loop import run_loop

pytestmark = pytest.mark.unit


async def _leave() -> None:
    raise SystemExit(1)


def test_an_exit_of_a_jobs_own_task_reaches_the_job_alone() -> None:
    async def main() -> str:
        neighbor = asyncio.create_task(asyncio.sleep(0, "neighbor"))
        with pytest.raises(SystemExit):
            await asyncio.gather(_leave())
        return await neighbor

    assert run_loop(main()) == "neighbor"


def test_an_exit_of_a_callback_does_not_end_the_loop() -> None:
    async def main() -> str:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: (_ for _ in ()).throw(SystemExit(1)))
        loop.call_soon(over.set)
        await over.wait()
        return "over"

    assert run_loop(main()) == "over"


def test_a_job_that_stops_the_loop_stops_no_other() -> None:
    async def main() -> str:
        asyncio.get_running_loop().stop()
        return await asyncio.sleep(0, "neighbor")

    assert run_loop(main()) == "neighbor"


def test_an_error_of_the_worker_itself_is_raised_once() -> None:
    async def main() -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        run_loop(main())


def test_an_exit_of_the_worker_itself_ends_the_process() -> None:
    with pytest.raises(SystemExit):
        run_loop(_leave())
