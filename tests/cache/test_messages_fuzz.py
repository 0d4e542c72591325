"""Random writers, readers and evictions: no page has a hole or lacks an acknowledged message."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from tests.support.caches import cache_on
from tests.support.message_fuzz import Fuzz

pytestmark = pytest.mark.faults

# A long run: `FUZZ_S=60 python -m pytest tests/cache/test_messages_fuzz.py -s`
SECONDS = float(os.environ.get("FUZZ_S", "4"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(2**32)


async def test_no_holes_and_nothing_acknowledged_is_missing(
    valkey_url: str, prefix: str, client: Any
) -> None:
    async with cache_on(valkey_url, prefix) as first, cache_on(valkey_url, prefix) as second:
        fuzz = Fuzz([first, second], client, SEED)
        findings = await fuzz.run(SECONDS, least_reads=100 * SECONDS)
        print(f"seed {SEED}: {findings}, hit rate {findings.hit_rate:.2f}, {first.stats()}")  # noqa: T201
    assert (findings.holes, findings.missing, findings.disordered) == (0, 0, 0), SEED
    assert findings.hit_rate > 0.6
