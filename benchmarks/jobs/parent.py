"""Starts a server and the processes of one contender, and measures them from outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("child.py")
PROCESSES = 4
Report = dict[str, float]


@contextmanager
def server() -> Iterator[int]:
    """Run a fresh valkey-server over loopback TCP; yield its port."""
    from cache.connection.embedded import server_binary

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        options = ["--port", str(port), "--save", "", "--dir", home, "--loglevel", "warning"]
        process = subprocess.Popen([str(server_binary()), *options], stdout=subprocess.DEVNULL)
        try:
            wait_for(port)
            yield port
        finally:
            process.terminate()
            process.wait()


def apart(servers: list[int], worker: int) -> None:
    """
    Give the servers and the worker a CPU each, if there are two.

    In a short run the kernel may leave both on the CPU where they woke each other.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cpus) > 1:
        os.sched_setaffinity(worker, cpus[:1])
        for port in servers:
            os.sched_setaffinity(info(port)["process_id"], cpus[1:2])


def info(port: int) -> dict[str, Any]:
    import redis

    with redis.Redis(port=port) as client:
        found: dict[str, Any] = client.info("all")
        return found


def wait_for(port: int) -> None:
    import redis

    while True:
        try:
            info(port)
        except redis.ConnectionError:
            time.sleep(0.02)
        else:
            return


def python_of(name: str) -> str:
    if name in ("ours", "arq", "arq_tuned"):
        return sys.executable
    return str(ROOT / ".venv" / "peers" / "bin" / "python")


class Child:
    """Runs one process of a contender; a thread reads its output."""

    def __init__(self, name: str, port: int, workload: str, count: int, **env: str) -> None:
        url = f"redis://127.0.0.1:{port}/0"
        self.process = subprocess.Popen(
            [python_of(name), str(CHILD), name, url, workload, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_STDERR") else subprocess.DEVNULL,
            text=True,
            env={**os.environ, **env},
        )
        self.ready = threading.Event()
        self.over = threading.Event()
        self.ran = 0
        self.numbers: list[int] = []
        self.report: Report | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, rest = line.partition(" ")
            if word == "ran":
                self.ran = int(rest)
            elif word == "numbers":
                self.numbers = json.loads(rest)
            elif word == "report":
                self.report = json.loads(rest)
                break
            elif word.strip() == "ready":
                self.ready.set()
        self.ready.set()
        self.over.set()


@contextmanager
def child(name: str, port: int, workload: str, count: int, **env: str) -> Iterator[Child]:
    found = Child(name, port, workload, count, **env)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def run(name: str, workload: str, count: int) -> Report:
    """Run one workload of one contender on its own server. Return {} if it failed."""
    with ExitStack() as stack:
        port = stack.enter_context(server())
        second = stack.enter_context(server()) if workload == "depth" else 0
        empty = info(port)
        url = f"redis://127.0.0.1:{second}/0"
        one = stack.enter_context(child(name, port, workload, count, SECOND_URL=url))
        one.ready.wait()
        if second:
            apart([port, second], one.process.pid)
        before = info(port)
        one.go()
        one.over.wait()
        after = info(port)
        if one.report is None:
            return {}
        report = dict(one.report)
    commands = after["total_commands_processed"] - before["total_commands_processed"]
    reads = after["total_reads_processed"] - before["total_reads_processed"]
    if workload == "idle":
        # The first figure counts commands inside scripts, too; the second only what clients send.
        report["commands_per_s"] = commands / report["seconds"]
        report["requests_per_s"] = reads / report.pop("seconds")
    if workload in ("noop", "sleep"):
        report["commands_a_job"] = commands / count
        report["writes_a_job"] = reads / count
    if workload in ("noop", "depth"):
        report["bytes_a_job"] = (before["used_memory"] - empty["used_memory"]) / count
    return report


def run_four(name: str, count: int) -> Report:
    """Run four worker processes on one queue and check that each job ran once."""
    with server() as port, ExitStack() as stack:
        children = [stack.enter_context(child(name, port, "four", count)) for _ in range(PROCESSES)]
        for one in children:
            one.ready.wait()
        filler = stack.enter_context(child(name, port, "fill", count))
        for one in children:
            one.go()
        deadline = time.monotonic() + 120
        while sum(one.ran for one in children) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        filler.over.wait(10)
        for one in children:
            one.go()
        for one in children:
            one.over.wait(10)
        reports = [one.report for one in children if one.report is not None]
        numbers = [number for one in children for number in one.numbers]
    ran = [report for report in reports if report["first"]]
    if not ran:
        return {}
    took = max(r["last"] for r in ran) - min(r["first"] for r in ran)
    return {
        "jobs_per_s": len(numbers) / took,
        "missing": count - len(set(numbers)),
        "duplicates": len(numbers) - len(set(numbers)),
        "processes": len(ran),
    }
