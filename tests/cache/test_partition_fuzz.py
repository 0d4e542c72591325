"""Random cuts of one process's network: nothing older than an acknowledged write is served."""

from __future__ import annotations

import os
import random

import pytest

from cache.coherence.membership import boot_clock
from tests.support.caches import cache_on
from tests.support.fault_proxy import fault_proxy
from tests.support.partition_fuzz import Fuzz

pytestmark = pytest.mark.faults

# A long run: `FUZZ_S=60 python -m pytest tests/cache/test_partition_fuzz.py -s`
SECONDS = float(os.environ.get("FUZZ_S", "6"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(2**32)
LEASE_S = 0.8


@pytest.mark.parametrize("rate", [0.985, 1.015], ids=["slow clock", "fast clock"])
async def test_nothing_older_than_an_acknowledged_write_is_served(
    valkey_url: str, prefix: str, rate: float
) -> None:
    async with (
        fault_proxy(valkey_url.removeprefix("unix://")) as proxy,
        cache_on(valkey_url, prefix) as free,
        cache_on(proxy.url, prefix, timeout_s=0.04, member_lease_s=LEASE_S) as cut,
    ):
        start = boot_clock()
        cut._membership.now = lambda: start + (boot_clock() - start) * rate
        findings = await Fuzz(cut, free, proxy, longest_s=2 * LEASE_S, seed=SEED).run(SECONDS)
        print(f"seed {SEED}: {findings}")  # noqa: T201
        assert findings.stale == 0, SEED
        assert findings.reads > 50 * SECONDS
        assert findings.hits > 0
        assert findings.cuts > 0
