"""
Measures message windows under concurrent writers: `python benchmarks/bench_messages.py [--quick]`.

Six writers commit out of order, 240 appends/s together, in two caches with eight
readers; the server is flushed every 0.15 s. Prints the share of reads that the
window answered, and how many pages lacked an acknowledged message (must be 0).
Writes out/bench_messages.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cache import Cache
from cache.connection import embedded
from cache.connection.pool import PoolOptions, open_pool
from tests.support.message_fuzz import Fuzz

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, SECONDS, QUICK_S = 3, 10.0, 2.0
_THINK_S, _FLUSH_EVERY_S = 0.03, 0.15
_TARGET = 0.6


async def measure(url: str, seconds: float, seed: int) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_pool(url, PoolOptions(), name=f"bench-{n}"))
            for n in range(3)
        ]
        caches = [await stack.enter_async_context(Cache(client)) for client in clients[:2]]
        fuzz = Fuzz(caches, clients[2], seed, think_s=_THINK_S, flush_every_s=_FLUSH_EVERY_S)
        found = await fuzz.run(seconds)
        stats = [cache.stats() for cache in caches]
    hits = sum(counts["window_hits"] for counts in stats)
    misses = sum(counts["window_misses"] for counts in stats)
    return {
        "appends_per_s": round(found.appended / seconds),
        "reads_per_s": round(found.reads / seconds),
        "answered": round(hits / (hits + misses), 3),
        "wrong": found.holes + found.missing + found.disordered,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    quick = parser.parse_args().quick
    url = embedded.acquire("embedded://")
    try:
        rounds = [
            asyncio.run(measure(url, QUICK_S if quick else SECONDS, seed))
            for seed in range(1 if quick else ROUNDS)
        ]
    finally:
        embedded.release("embedded://")
    for row in rounds:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    (ROOT / "out").mkdir(exist_ok=True)
    (ROOT / "out" / "bench_messages.json").write_text(json.dumps(rounds, indent=1) + "\n")
    met = all(row["answered"] >= _TARGET and row["wrong"] == 0 for row in rounds)
    print(f"at least {_TARGET:.0%} answered, none wrong: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
