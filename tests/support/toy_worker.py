"""
A worker process for the supervisor's tests. It runs no jobs, and misbehaves on request.

    python -m tests.support.toy_worker MODE [options]

serve: run until drained; with `--slow-drain` until forced; with `--deaf` forever.
crash: exit 7 before serving. exit-2: print an error and exit 2 before serving.
slow-import: hold before any process is forked, while `--while-file` exists; then as serve.
broken: print an error and exit 2 before any process is forked.
refuse: raise a configuration error while serving, once `--while-file` is gone.
blocked: block the event loop while `--while-file` exists. silent: never serve.
Each step prints a JSON line with the process's id to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading

from worker.process.child import ChildOptions, serve
from worker.process.fork_server import fork_on_request

_STEP_S = 0.05


def report(event: str) -> None:
    os.write(1, json.dumps({"event": event, "pid": os.getpid()}).encode() + b"\n")


def is_there(path: str | None) -> bool:
    return path is not None and os.path.exists(path)  # noqa: PTH110


def held(path: str | None) -> None:
    """Block this process while the file exists."""
    while is_there(path):
        threading.Event().wait(_STEP_S)


class BadToy(Exception):
    pass


class ToyWorker:
    def __init__(self, options: argparse.Namespace) -> None:
        self.jobs_done = 0
        self._options = options
        self._end = asyncio.Event()

    async def run(self) -> None:
        report("toy.running")
        if self._options.mode == "refuse":
            while is_there(self._options.while_file):  # noqa: ASYNC110  (another process makes the file)
                await asyncio.sleep(_STEP_S)
            raise BadToy("LETTA_TOY: no such\ntoy")
        if self._options.mode == "blocked":
            # No await, on purpose: this stands for a job that blocks the event loop.
            held(self._options.while_file)
        while not self._end.is_set():
            self.jobs_done += self._options.jobs_per_step
            try:
                async with asyncio.timeout(0.02):
                    await self._end.wait()
            except TimeoutError:
                continue

    def drain(self) -> None:
        report("toy.drained")
        if not (self._options.slow_drain or self._options.deaf):
            self._end.set()

    def quiet(self) -> None:
        report("toy.quieted")

    def force(self) -> None:
        report("toy.forced")
        if not self._options.deaf:
            self._end.set()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("--slow-drain", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--while-file")
    parser.add_argument("--jobs-per-step", type=int, default=0)
    parser.add_argument("--max-jobs", type=int, default=0)
    parser.add_argument("--max-rss", type=int, default=0)
    parser.add_argument("--grace", type=float, default=30.0)
    options = parser.parse_args()
    if options.mode == "slow-import":
        held(options.while_file)
    if options.mode == "broken":
        sys.stderr.write("LETTA_TOY: no such toy\n")
        sys.exit(2)
    fork_on_request()
    if options.mode == "crash":
        sys.exit(7)
    if options.mode == "exit-2":
        sys.stderr.write("LETTA_TOY: no such toy\n")
        sys.exit(2)
    if options.mode == "silent":
        threading.Event().wait()
    bounds = ChildOptions(
        heartbeat_interval_s=0.05,
        shutdown_grace_s=options.grace,
        kill_margin_s=0.2,
        max_jobs_done=options.max_jobs,
        max_rss_bytes=options.max_rss,
        configuration_errors=(BadToy,),
    )
    sys.exit(asyncio.run(_serve(options, bounds)))


async def _serve(options: argparse.Namespace, bounds: ChildOptions) -> int:
    return await serve(ToyWorker(options), bounds)


if __name__ == "__main__":
    main()
