"""Runs a supervisor and its children as real processes and collects their events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
# Short enough for a test, long enough for a busy machine. Tests change what they check.
OPTIONS: dict[str, Any] = {
    "shutdown_grace_s": 20,
    "kill_margin_s": 1,
    "heartbeat_timeout_s": 60,
}
RESTART: dict[str, Any] = {"backoff_base_s": 0.05, "min_interval_s": 0.0, "crash_window_s": 600}


class Supervised:
    """`events` has every JSON line of the parent and its children, `lines` every other line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                self.lines.append(line.decode())

    def all(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        wanted = {"event": event, **fields}
        return [e for e in list(self.events) if wanted.items() <= e.items()]

    async def event(
        self, name: str, *, count: int = 1, deadline_s: float = 120.0, **fields: Any
    ) -> dict[str, Any]:
        """Wait for the `count`-th event with this name and these fields, and return it."""

        async def found() -> list[dict[str, Any]]:
            return self.all(name, **fields)[count - 1 :]

        try:
            return (await eventually(found, deadline_s=deadline_s))[0]
        except AssertionError:
            raise AssertionError(f"no {count} x {name} {fields} in {self.events}") from None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self, deadline_s: float = 120.0) -> int:
        """Return the parent's exit code, after all output was read."""
        async with asyncio.timeout(deadline_s):
            await self.reading
            return await self.process.wait()

    async def stderr(self) -> str:
        """Return all of standard error, after the last process that holds it has ended."""
        assert self.process.stderr is not None
        async with asyncio.timeout(120.0):
            return (await self.process.stderr.read()).decode()

    async def gone(self) -> None:
        """Return once no child and no fork server is left."""
        servers = {e["pid"] for e in self.all("supervisor.fork_server_started")}

        async def look() -> bool:
            return not any(is_alive(pid) for pid in self.pids | servers)

        await eventually(look, deadline_s=120.0)

    @property
    def pids(self) -> set[int]:
        started = self.all("supervisor.child_started") + self.all("supervisor.child_restarted")
        return {e["pid"] for e in started}


def is_alive(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


@asynccontextmanager
async def start(
    *arguments: str, program: str = sys.executable, environ: dict[str, str] | None = None
) -> AsyncIterator[Supervised]:
    """
    Start a Python command that logs JSON lines to standard output, or another `program`
    that logs them to standard error. Kill all its processes at the end.
    """
    ours = program == sys.executable
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        cwd=ROOT,
        env={**os.environ, **(environ or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if ours else asyncio.subprocess.STDOUT,
    )
    supervised = Supervised(process)
    try:
        yield supervised
    finally:
        for pid in [process.pid, *supervised.pids]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()
        await supervised.reading


@asynccontextmanager
async def supervised(
    mode: str, *flags: str, count: int = 1, restart: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Supervised]:
    """Run a supervisor of `count` toy workers. Keywords change its options."""
    settings = {**OPTIONS, **options, "restart": {**RESTART, **(restart or {})}}
    command = [sys.executable, "-m", "tests.support.toy_worker", mode, *flags]
    parent = ["-m", "tests.support.supervise", json.dumps(settings), str(count)]
    async with start(*parent, *command) as running:
        yield running
