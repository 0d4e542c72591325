"""
Jobs that write each start and end of a run to a ledger, a file outside Valkey.

Each line is `start|end job_id pid try`. LEDGER in the environment names the file.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from tests.support.engine_process import Ledger


def _write(kind: str, ctx: dict[str, Any]) -> None:
    Ledger(Path(os.environ["LEDGER"])).write(kind, ctx["job_id"], os.getpid(), ctx["job_try"])


async def succeed(ctx: dict[str, Any], seconds: float = 0) -> None:
    _write("start", ctx)
    await asyncio.sleep(seconds)
    _write("end", ctx)


async def fail_once(ctx: dict[str, Any]) -> None:
    _write("start", ctx)
    if ctx["job_try"] == 1:
        raise ValueError("the first time")
    _write("end", ctx)


async def fail_always(ctx: dict[str, Any]) -> None:
    _write("start", ctx)
    raise ValueError("every time")


async def time_out(ctx: dict[str, Any]) -> None:
    _write("start", ctx)
    await asyncio.Event().wait()


async def die(ctx: dict[str, Any]) -> None:
    _write("start", ctx)
    os.kill(os.getpid(), signal.SIGKILL)


FUNCTIONS = ",".join(
    f"{__name__}:{each.__name__}" for each in (succeed, fail_once, fail_always, time_out, die)
)
