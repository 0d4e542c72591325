"""
Runs one contender as a process: `python benchmarks/jobs/child.py NAME URL WORKLOAD COUNT`.

Prints `ready` when it is set up, begins at a line on stdin, prints `report {...}` at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

# Do not search this folder: its modules have the names of other packages.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.jobs.contenders import CONTENDERS, LEDGER, Contender  # noqa: E402

Report = dict[str, float]
# Checking takes time from the measured worker, so it is rare.
LOOK_S = 0.1
# Time between two pickups, so that the worker is idle again.
BETWEEN_S = 0.03


def say(line: str) -> None:
    print(line, flush=True)


async def begin() -> None:
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)


async def ran(count: int, look_s: float = LOOK_S) -> None:
    while LEDGER.runs < count:  # noqa: ASYNC110  (dramatiq counts from threads)
        await asyncio.sleep(look_s)


async def drain(contender: Contender, kind: str, count: int) -> Report:
    """Queue `count` jobs, then start the worker; measure from the first start to the last end."""
    await contender.fill(kind, count)
    await begin()
    cpu = time.process_time()
    working = asyncio.ensure_future(contender.work())
    await ran(count)
    assert not working.done()
    return {
        "cpu_us": (time.process_time() - cpu) / count * 1e6,
        "jobs_per_s": count / (LEDGER.last - LEDGER.first),
    }


async def noop(contender: Contender, count: int) -> Report:
    return await drain(contender, "noop", count)


async def sleep(contender: Contender, count: int) -> Report:
    return await drain(contender, "sleep", count)


async def enqueue(contender: Contender, count: int) -> Report:
    await contender.enqueue("noop")
    await begin()
    begun, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        await contender.enqueue("noop", number)
    took = time.perf_counter() - begun
    report = {"per_s": count / took, "cpu_us": (time.process_time() - cpu) / count * 1e6}
    if type(contender).fill is not Contender.fill:
        begun = time.perf_counter()
        await contender.fill("noop", 5 * count)
        report["bulk_per_s"] = 5 * count / (time.perf_counter() - begun)
    return report


async def pickup(contender: Contender, count: int) -> Report:
    working = asyncio.ensure_future(contender.work())
    await asyncio.sleep(2)
    await begin()
    for n in range(count):
        await contender.enqueue("noop", n, time.time())
        await ran(n + 1, BETWEEN_S)
        await asyncio.sleep(BETWEEN_S)
    waits = sorted(LEDGER.waits)
    assert not working.done()
    return {
        "p50_ms": statistics.median(waits) * 1e3,
        "p99_ms": waits[int(len(waits) * 0.99) - 1] * 1e3,
    }


async def idle(contender: Contender, count: int) -> Report:
    """Run an idle worker for `count` seconds."""
    working = asyncio.ensure_future(contender.work())
    await asyncio.sleep(4)
    await begin()
    await asyncio.sleep(count)
    assert not working.done()
    return {"seconds": count}


async def four(contender: Contender, count: int) -> Report:
    """Run one of several workers on the same queue; `count` is the number of all jobs."""
    working = asyncio.ensure_future(contender.work())
    await asyncio.sleep(1)
    await begin()
    asked = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
    said = 0
    while not asked.done():
        if LEDGER.runs != said:
            said = LEDGER.runs
            say(f"ran {said}")
        await asyncio.sleep(LOOK_S)
    assert not working.done()
    say("numbers " + json.dumps(LEDGER.numbers))
    return {"first": LEDGER.first, "last": LEDGER.last, "expected": count}


async def fill(contender: Contender, count: int) -> Report:
    await contender.fill("noop", count)
    return {}


async def depth(contender: Contender, count: int) -> Report:
    """
    Measure the rate with `count` waiting jobs, and alternately with 1,000 on a second server.

    Each round enqueues 1,000 jobs and times the first 1,000 that run, on both servers.
    """
    few, rounds = 1000, 20
    other = type(contender)()
    await other.open(os.environ["SECOND_URL"])
    await contender.fill("noop", count)
    await begin()
    paces: dict[str, list[float]] = {"few": [], "many": []}
    for _ in range(rounds):
        for name, one in (("few", other), ("many", contender)):
            await one.fill("noop", few)
            paces[name].append(await pace(one, few))
    found = {name: statistics.median(rates) for name, rates in paces.items()}
    return {
        "few_per_s": found["few"],
        "many_per_s": found["many"],
        "ratio": found["many"] / found["few"],
    }


async def pace(contender: Contender, count: int) -> float:
    """Return the jobs per second of a worker that starts now, over its first `count` jobs."""
    LEDGER.first, LEDGER.runs, LEDGER.goal = 0.0, 0, count
    working = asyncio.ensure_future(contender.work())
    await ran(count)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return count / (LEDGER.reached - LEDGER.first)


WORKLOADS: dict[str, Callable[[Contender, int], Awaitable[Report]]] = {
    "noop": noop,
    "sleep": sleep,
    "enqueue": enqueue,
    "pickup": pickup,
    "idle": idle,
    "four": four,
    "fill": fill,
    "depth": depth,
}


async def main(name: str, url: str, workload: str, count: str) -> None:
    contender = CONTENDERS[name]()
    await contender.open(url)
    report = await WORKLOADS[workload](contender, int(count))
    say("report " + json.dumps(report))
    # Some contenders cannot be stopped while they work.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
