"""
Processes that die at random cost the others only what they were writing, also while the server
restarts, is flushed and is replaced by a lagging replica.

`make soak` runs it with 20 processes for a minute, one of them stopped for as long.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys

import pytest

from tests.support.deaths import COLD

pytestmark = pytest.mark.faults

LONG = "DEATHS_S" in os.environ
SECONDS = os.environ.get("DEATHS_S", "2")
PROCESSES, STOP_S, TIMES = ("20", "60", "2") if LONG else ("5", "3", "1")
SEED = os.environ.get("FUZZ_SEED") or str(random.randrange(2**32))
FAULTS = "restart,flush,failover,switch"


async def _findings(*words: str) -> dict[str, int]:
    command = ["-m", "tests.support.deaths", "--seed", SEED, "--processes", PROCESSES]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--seconds", SECONDS, *words, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    findings: dict[str, int] = json.loads(output.splitlines()[-1])
    print(f"seed {SEED}: {findings}")  # noqa: T201
    assert findings["stale"] == 0, SEED
    return findings


@pytest.mark.parametrize("signals", ["SIGKILL,SIGTERM", "SIGKILL,SIGSTOP"])
async def test_a_death_costs_only_what_was_being_written(
    valkey_url: str, prefix: str, signals: str
) -> None:
    server = ("--url", valkey_url, "--prefix", prefix)
    findings = await _findings(*server, "--signals", signals, "--stop", STOP_S)
    assert findings["unended"] == 0, SEED
    # Each was loaded once, and then served to all until the end.
    assert findings["cold_loads"] == COLD


async def test_deaths_while_the_server_breaks_bring_nothing_old_back() -> None:
    findings = await _findings("--faults", FAULTS, "--times", TIMES)
    assert findings["losses"] >= 5
    # A process that dies between a fault and its fill costs one load more.
    assert findings["cold_loads"] <= COLD * (1 + findings["losses"]) + findings["struck"]
