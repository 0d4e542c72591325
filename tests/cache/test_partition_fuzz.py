"""Random cuts of one process's network: nothing older than a write that counts is served."""

from __future__ import annotations

import os
import random
from typing import Literal

import pytest

from cache.coherence.clock import boot_clock
from tests.support.caches import cache_on
from tests.support.fault_proxy import fault_proxy
from tests.support.partition_fuzz import Findings, Fuzz

pytestmark = pytest.mark.faults

# A long run: `FUZZ_S=60 python -m pytest tests/cache/test_partition_fuzz.py -s`
SECONDS = float(os.environ.get("FUZZ_S", "5"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(2**32)
TTL_S = 0.8


@pytest.mark.parametrize(("cut_off", "rate"), [("serve", 0.985), ("refuse", 1.015)])
async def test_nothing_older_than_a_write_that_counts_is_served(
    valkey_url: str, prefix: str, cut_off: Literal["serve", "refuse"], rate: float
) -> None:
    """`rate`: how fast the clock of the process runs."""
    async with (
        fault_proxy(valkey_url.removeprefix("unix://")) as proxy,
        cache_on(valkey_url, prefix, intent_s=TTL_S) as free,
        cache_on(proxy.url, prefix, timeout_s=0.04, intent_s=TTL_S, cut_off=cut_off) as cut,
    ):
        start = boot_clock()
        cut.components.intents.now = lambda: start + (boot_clock() - start) * rate

        def enough(found: Findings) -> bool:
            refused = found.refused > 0 or cut_off == "serve"
            return found.reads > 50 * SECONDS and found.hits > 0 and found.cuts > 0 and refused

        fuzz = Fuzz(cut, free, proxy, longest_s=2 * TTL_S, seed=SEED)
        findings = await fuzz.run(SECONDS, enough=enough)
        print(f"seed {SEED}: {findings}")  # noqa: T201
        assert findings.stale == 0, SEED
        assert cut_off == "refuse" or findings.refused == 0
