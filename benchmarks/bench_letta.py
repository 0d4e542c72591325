"""
Measures the plug-in in the real Letta server: `python benchmarks/bench_letta.py [--quick] [--clients N]`.

reads: `get_agent_by_id_async` in one process (letta_reads.py), without the plug-in, as a
miss, and as a hit; with Letta's own NullPool, and pooled. Then runs, one right after the
other, and how many found their agent in the cache.
http: two servers on one PostgreSQL, one of them with the plug-in, in turns: GET
/v1/agents/{id}, and a message of one step. Statements are counted in PostgreSQL's log, while
nothing is timed.
load: 100 clients on 20 agents, each with one request at a time; one in 20 is a message. CPU is
the server's own, without PostgreSQL's.
Needs `make letta-env`. Writes out/bench_letta.json. --quick: pooled only, and short.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
LETTA = ROOT / ".venv" / "letta" / "bin" / "python"

# The limits: name, figure, whether it must be at most or at least that.
TARGETS: dict[str, tuple[str, float]] = {
    "hit, pooled, times faster": (">=", 20.0),
    "hit, NullPool, times faster": (">=", 40.0),
    "hit, statements": ("<=", 0.0),
    "miss, pooled, ratio": ("<=", 1.05),
    "miss, NullPool, ratio": ("<=", 1.05),
    "miss, pooled, ratio of CPU": ("<=", 1.05),
    "miss, NullPool, ratio of CPU": ("<=", 1.05),
    "GET, pooled, ratio": ("<=", 0.5),
    "GET, statements": ("<=", 0.0),
    "step, pooled, ratio": ("<=", 1.0),
    "step, statements": ("<=", 55.0),
    "run, agent reads that hit": (">=", 0.95),
}


def reads(uri: str, valkey: str, home: str, *, pooled: bool, quick: bool) -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LETTA_")}
    environment |= {
        "LETTA_PG_URI": uri + ("?ssl=disable" if pooled else ""),
        "LETTA_DISABLE_SQLALCHEMY_POOLING": str(not pooled).lower(),
        "LETTA_ENCRYPTION_KEY": "a key of the benchmark",
        "LETTA_DIR": home,
        "BENCH_VALKEY": valkey,
        "PYTHONWARNINGS": "ignore",
    }
    # Rounds, reads of each kind in one, and runs.
    rounds = ("5", "4", "10") if quick else ("25", "4", "20")
    command = [str(LETTA), "-m", "benchmarks.letta_reads", *rounds]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def measured(home: Path, *, quick: bool, clients: int) -> dict[str, Any]:
    from benchmarks.letta_servers import Pair
    from cache.connection import embedded
    from tests.letta.postgres import postgres
    from tests.letta.processes import model_server

    found: dict[str, Any] = {}
    valkey = embedded.acquire("embedded://")
    try:
        with ExitStack() as stack:
            server = stack.enter_context(postgres(home / "postgres"))
            models = stack.enter_context(model_server(home))
            for name in ("pooled",) if quick else ("pooled", "NullPool"):
                pooled = name == "pooled"
                uri = server.uri(server.create())
                read = reads(uri, valkey, str(home), pooled=pooled, quick=quick)
                with Pair(home, server, valkey, models, pooled=pooled) as pair:
                    http = pair.compared(times=10 if quick else 40)
                    load = pair.loaded(seconds=10 if quick else 60, clients=clients)
                found[name] = {"reads": read, "http": http, "load": load}
    finally:
        embedded.release("embedded://")
    return found


def figures(found: dict[str, Any]) -> dict[str, float]:
    """The measured values of TARGETS, as far as they were measured."""
    got: dict[str, float] = {}
    for pool, part in found.items():
        ms, cpu, http = part["reads"]["ms"], part["reads"]["cpu_ms"], part["http"]
        got[f"hit, {pool}, times faster"] = ms["without"] / ms["hit"]
        got[f"miss, {pool}, ratio"] = ms["miss"] / ms["without"]
        got[f"miss, {pool}, ratio of CPU"] = cpu["miss"] / cpu["without"]
        got["hit, statements"] = part["reads"]["statements"]["hit"]
        got["GET, statements"] = http["plugin"]["get_statements"]
        if pool == "pooled":  # without a pool, each connection's own ones count, too
            got["step, statements"] = http["plugin"]["step_statements"]
        got["run, agent reads that hit"] = part["reads"]["hits"]
        for what in ("get", "step"):
            label = f"{'GET' if what == 'get' else 'step'}, {pool}, ratio"
            got[label] = http["plugin"][f"{what}_ms"] / http["plain"][f"{what}_ms"]
    return got


def table(found: dict[str, Any]) -> bool:
    for pool, part in found.items():
        print(f"\n{pool}: get_agent_by_id_async")
        for name, ms in part["reads"]["ms"].items():
            cpu, sent = (part["reads"][kind][name] for kind in ("cpu_ms", "statements"))
            print(f"  {name:8} {ms:8.2f} ms {cpu:8.2f} ms of CPU {sent:3} statements")
        for what in ("http", "load"):
            print(f"{pool}: {what}")
            for side in ("plain", "plugin"):
                row = part[what][side]
                print(f"  {side:8} " + "  ".join(f"{k} {v:g}" for k, v in row.items()))
    got, met = figures(found), True
    print()
    for name, (sign, limit) in TARGETS.items():
        if name in got:
            holds = got[name] <= limit if sign == "<=" else got[name] >= limit
            met = met and holds
            print(f"{name:30} {got[name]:8.2f} {sign} {limit:g}  {'met' if holds else 'MISSED'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="pooled only, and short")
    parser.add_argument("--clients", type=int, default=100, help="of the load")
    given = parser.parse_args()
    if not LETTA.exists():
        print("skipped: `make letta-env` installs the Letta server")
        return 0
    if Path(sys.prefix).resolve() != LETTA.parent.parent.resolve():
        os.execv(LETTA, [str(LETTA), __file__, *sys.argv[1:]])
    with TemporaryDirectory(prefix="bench-letta-", dir="/tmp") as home:
        Path(home).chmod(0o755)
        found = measured(Path(home), quick=given.quick, clients=given.clients)
    (ROOT / "out").mkdir(exist_ok=True)
    (ROOT / "out" / "bench_letta.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0 if table(found) else 1


if __name__ == "__main__":
    sys.exit(main())
