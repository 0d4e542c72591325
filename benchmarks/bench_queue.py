"""
Measures the engine against its peers: `python benchmarks/bench_queue.py [--quick]`.

Each contender is one process at concurrency 32 on a fresh valkey-server over
loopback TCP. Rounds are interleaved and the medians are compared, so a
disturbance of the machine hits all of them. CPU per job and commands per job
are steadier than rates. Ours and arq run in this environment; the other peers
pin other versions of redis-py and run in .venv/peers (`make bench` sets it up).
Writes out/bench_queue.json.

noop: queued jobs that do nothing; from the first start to the last end.
sleep: the same with 50 ms of sleep; `of_ideal` is the share of 640 per second.
pickup: an idle worker; from before the enqueue to the start of the job.
idle: commands and requests per second of a worker without jobs.
enqueue: one job at a time, and many at once if the contender has such a call.
four: four processes on one queue; counts jobs that ran twice or not at all.
depth: ours with 1,000 waiting jobs and with a million; server and worker on a CPU each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.jobs.parent import Report, python_of, run, run_four  # noqa: E402

PEERS = ["ours", "arq", "arq_tuned", "saq", "streaq", "taskiq_stream", "dramatiq"]
IDEAL_PER_S = 640
# How many jobs, or seconds of idling: in full and quick.
COUNTS = {
    "noop": (4000, 2000),
    "sleep": (3200, 640),
    "pickup": (300, 100),
    "enqueue": (3000, 1500),
    "idle": (40, 20),
    "four": (8000, 4000),
    "depth": (1_000_000, 200_000),
}
# Some are so much faster or slower that the same number would measure nothing, or take all day.
SCALE = {
    ("noop", "ours"): 10.0,
    ("noop", "dramatiq"): 2.0,
    ("noop", "arq"): 0.2,
    ("sleep", "arq"): 0.1,
    ("pickup", "arq"): 0.2,
    ("pickup", "dramatiq"): 0.3,
    ("four", "ours"): 10.0,
}
ONLY = {"four": ["ours", "saq"], "depth": ["ours"]}
# Quiet or long: once is enough.
ONCE = ("idle", "depth")

Found = dict[str, dict[str, list[Report]]]


def measure(workload: str, name: str, count: int) -> Report:
    count = int(count * SCALE.get((workload, name), 1.0))
    report = run_four(name, count) if workload == "four" else run(name, workload, count)
    if workload == "sleep" and report:
        report["of_ideal"] = report["jobs_per_s"] / IDEAL_PER_S
    return report


def keep(found: Found, workload: str, name: str, report: Report) -> None:
    found.setdefault(workload, {}).setdefault(name, []).append(report)
    shown = "  ".join(f"{key}={value:.4g}" for key, value in sorted(report.items()))
    print(f"  {workload:<8}{name:<14}{shown or 'broke'}", flush=True)


def round_(found: Found, workloads: list[str], names: list[str], *, quick: bool) -> None:
    for workload in workloads:
        count = COUNTS[workload][quick]
        chosen = [name for name in names if name in ONLY.get(workload, names)]
        if workload == "idle":
            # They disturb each other little, and each needs its time.
            with ThreadPoolExecutor(len(chosen)) as pool:
                reports = list(pool.map(lambda name: measure("idle", name, count), chosen))  # noqa: B023
        else:
            reports = (measure(workload, name, count) for name in chosen)  # type: ignore[assignment]
        for name, report in zip(chosen, reports, strict=True):
            keep(found, workload, name, report)


def median(reports: list[Report]) -> Report:
    keys = {key for report in reports for key in report}
    return {
        key: round(statistics.median(r[key] for r in reports if key in r), 3)
        for key in sorted(keys)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="one round of few jobs")
    parser.add_argument("--only", default=",".join(COUNTS), help="workloads, by commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="contenders, by commas")
    options = parser.parse_args()
    workloads = [w for w in COUNTS if w in options.only.split(",")]
    names = [n for n in PEERS if n in options.peers.split(",") and Path(python_of(n)).exists()]
    found: Found = {}
    for number in range(1 if options.quick else 3):
        print(f"round {number + 1}", flush=True)
        due = [w for w in workloads if number == 0 or w not in ONCE]
        round_(found, due, names, quick=options.quick)
    table = {w: {n: median(r) for n, r in rows.items()} for w, rows in found.items()}
    for workload, rows in table.items():
        print(f"\n{workload}")
        for name, row in rows.items():
            print(f"  {name:<14}" + "  ".join(f"{k}={v:g}" for k, v in row.items()))
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    (out / "bench_queue.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
