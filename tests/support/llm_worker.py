"""Worker processes, and some that kill themselves when a batch reaches a point, as `posted`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from settings import Settings, load_settings
from worker.app import composition
from worker.app.service import build_worker
from worker.llm.context import LLMContext

_build = composition.build_llm_context


# A fork of a process that has imported everything costs a tenth of a new one.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def _deadly(point: str) -> Any:
    def reached(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def build(settings: Settings, stores: composition.Stores) -> LLMContext:
        return replace(_build(settings, stores), reached=reached)

    return build


def _work(point: str, settings: dict[str, Any]) -> None:
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    composition.build_llm_context = _deadly(point)
    asyncio.run(build_worker(load_settings(**settings)).run())


@asynccontextmanager
async def worker_process(
    settings: dict[str, Any], *, dies_at: str = "never"
) -> AsyncIterator[BaseProcess]:
    """A worker in a process of its own; `dies_at` is a point of a batch."""
    process = _FORKS.Process(target=_work, args=(f"batch.{dies_at}", settings))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.join)


async def die_at(point: str, settings: dict[str, Any]) -> None:
    """Run a worker process until it reaches the point and dies by SIGKILL."""
    async with worker_process(settings, dies_at=point) as process:
        await asyncio.to_thread(process.join, 90)
        assert process.exitcode == -signal.SIGKILL
