"""Processes that die at random cost the others only what they were writing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys

import pytest

from tests.support.deaths import COLD

pytestmark = pytest.mark.faults

# A long run: `DEATHS_S=60 DEATHS=20 python -m pytest tests/cache/test_deaths.py -s`
SECONDS = os.environ.get("DEATHS_S", "3")
PROCESSES = os.environ.get("DEATHS", "5")
SEED = os.environ.get("FUZZ_SEED") or str(random.randrange(2**32))


@pytest.mark.parametrize("signals", ["SIGKILL,SIGTERM", "SIGKILL,SIGSTOP"])
async def test_a_death_costs_only_what_was_being_written(
    valkey_url: str, prefix: str, signals: str
) -> None:
    words = ["-m", "tests.support.deaths", valkey_url, prefix, PROCESSES, SECONDS, signals, SEED]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    findings = json.loads(output.splitlines()[-1])
    print(f"seed {SEED}: {findings}")  # noqa: T201
    assert findings["stale"] == 0, SEED
    # Each was loaded once, and then served to all until the end.
    assert findings["cold_loads"] == COLD
