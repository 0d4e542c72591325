"""Runs the event loop of a worker process. Only the worker's end stops it, no task of a job."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from cache.logs import get_logger

T = TypeVar("T")

log = get_logger(__name__)


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """
    Run a coroutine to its end, as `asyncio.run` does.

    `SystemExit` or `KeyboardInterrupt` of any other task (a job's `gather`, its callback) ends
    that task only. asyncio would end the loop, and with it the jobs next to it. Whoever awaits
    the task gets the exception, as it gets any other. `loop.stop()` ends nothing either.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as exc:
                if task.done() or (isinstance(exc, KeyboardInterrupt) and _may_be_ctrl_c()):
                    raise
                log.exception("process.exit_ignored", error=type(exc).__name__)
            except RuntimeError:
                if task.done():
                    raise
                log.exception("process.exit_ignored", error="loop.stop")


def _may_be_ctrl_c() -> bool:
    # Once the worker handles the signal, only a job raises KeyboardInterrupt.
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
