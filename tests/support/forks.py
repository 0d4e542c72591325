"""Starts worker processes in milliseconds by forking one that has imported everything."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Forks:
    """`start()` returns the process id of a new worker, with the nursery's environment."""

    def __init__(self, nursery: subprocess.Popen[str]) -> None:
        self._nursery = nursery
        self._alive: set[int] = set()

    def start(self) -> int:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write("\n")
        self._nursery.stdin.flush()
        pid = int(self._nursery.stdout.readline())
        self._alive.add(pid)
        return pid

    def alive(self) -> list[int]:
        """The workers that neither were killed nor ended by themselves, in the order of their ids."""
        for pid in list(self._alive):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                self._alive.discard(pid)
        return sorted(self._alive)

    def kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._alive.discard(pid)

    def kill_all(self) -> None:
        for pid in list(self._alive):
            self.kill(pid)


@contextmanager
def forks(log: Path, **environment: str) -> Iterator[Forks]:
    with log.open("ab") as output:
        nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks"],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    found = Forks(nursery)
    try:
        yield found
    finally:
        found.kill_all()
        nursery.kill()
        nursery.communicate(timeout=10)


def _serve() -> None:
    from settings import load_settings
    from worker.app.service import build_worker

    # Dead children are reaped automatically.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # What it prints belongs in the log; the nursery's own answers are read.
            os.dup2(2, 1)

            async def work() -> None:
                await build_worker(load_settings()).run()

            asyncio.run(work())
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
