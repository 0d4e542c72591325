"""
Measures what starting and idling costs: `python benchmarks/bench_start.py [--quick]`.

cpu: seconds of CPU of whole processes, least and median. Each round runs all of
them once. `python` alone is the floor: compare with it on a busy machine.
workers: `letta-workers run --count 4` without jobs. The proportional set size
(PSS) counts a page that n processes share as 1/n in each, so the sum is what the
machine gives. Then one worker is killed: from its end to its replacement's first
heartbeat, without the restart's backoff.
Writes out/bench_start.json. Needs Linux: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cache.connection import embedded  # noqa: E402

WORKERS = 4
LETTA = str(Path(sys.executable).with_name("letta-workers"))
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import letta_redis"],
    "open_queue": [sys.executable, "-c", "from letta_redis import open_queue, Priority"],
    "open_cache": [sys.executable, "-c", "from letta_redis import open_cache"],
    "health": [LETTA, "health"],
    "health_away": ["env", "LETTA_REDIS_URL=redis://127.0.0.1:1/0", LETTA, "health"],
    "status": [LETTA, "status"],
}


def cpu_s(command: list[str]) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return usage.ru_utime + usage.ru_stime


class Workers:
    """A supervisor with its processes; `events` are the lines of its log."""

    def __init__(self) -> None:
        self._log = ROOT / "out" / "bench_start.log"
        with self._log.open("wb") as log:
            command = [LETTA, "run", "--count", str(WORKERS)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in events if event["event"] == name]

    def processes(self) -> list[int]:
        """The supervisor and everything below it."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found


def memory_mb(pid: int) -> dict[str, float]:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {row.split(":")[0]: int(row.split()[1]) for row in rows}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return {
        "pss_mb": kib["Pss"] / 1024,
        "rss_mb": kib["Rss"] / 1024,
        "private_mb": private / 1024,
    }


def until(look: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError("the workers did not get there in time; see out/bench_start.log")
        time.sleep(0.05)


def measure_workers(settle_s: float, rounds: int) -> dict[str, Any]:
    workers = Workers()
    try:
        until(lambda: len(workers.events("worker.started")) >= WORKERS)
        time.sleep(settle_s)
        parts = [memory_mb(pid) for pid in workers.processes()]
        report: dict[str, Any] = {
            key: round(sum(part[key] for part in parts), 1) for key in parts[0]
        }
        report["processes"] = [{k: round(v, 1) for k, v in part.items()} for part in parts]
        report["cpu"] = measure_cpu(rounds)
        for number in range(rounds):
            victim = workers.events("supervisor.child_ready")[-1]["pid"]
            os.kill(victim, signal.SIGKILL)
            ready = WORKERS + number + 1
            until(lambda: len(workers.events("supervisor.child_ready")) >= ready)  # noqa: B023
        restarts = [e["after_s"] for e in workers.events("supervisor.child_ready")[WORKERS:]]
        report["restart_s"] = {"least": min(restarts), "median": statistics.median(restarts)}
        return report
    finally:
        workers.process.send_signal(signal.SIGTERM)
        workers.process.wait(30)


def measure_cpu(rounds: int) -> dict[str, dict[str, float]]:
    """While workers run, so that `health` finds one."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            found[name].append(cpu_s(command))
    return {
        name: {"least_s": round(min(times), 3), "median_s": round(statistics.median(times), 3)}
        for name, times in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    (ROOT / "out").mkdir(exist_ok=True)
    os.environ["LETTA_REDIS_URL"] = embedded.acquire("embedded://")
    os.environ |= {"LETTA_WORKER_LOG_FORMAT": "json", "LETTA_WORKER_MAX_CRASHES": "100"}
    try:
        workers = measure_workers(settle_s=3 if quick else 10, rounds=3 if quick else 9)
    finally:
        embedded.release("embedded://")
    for name, row in workers["cpu"].items():
        print(f"cpu      {name:<12}" + "  ".join(f"{k}={v:g}" for k, v in row.items()))
    for key in ("pss_mb", "rss_mb", "private_mb"):
        shown = " ".join(f"{part[key]:.0f}" for part in workers["processes"])
        print(f"workers  {key:<12}{workers[key]:g}  ({shown})")
    print(
        "workers  restart     " + "  ".join(f"{k}={v:g}" for k, v in workers["restart_s"].items())
    )
    (ROOT / "out" / "bench_start.json").write_text(json.dumps(workers, indent=2) + "\n")


if __name__ == "__main__":
    main()
