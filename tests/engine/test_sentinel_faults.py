"""
With Sentinels, no acknowledged job is lost by a failover, and none is charged for it.

The Sentinels and their user at the servers have passwords. `make soak` breaks them by each fault,
and by all in random orders.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.ledger import lose_nothing
from tests.support.sentinel_faults import FAULTS, WatchedPair, watched_pair

SEED, ROUNDS = int(os.environ.get("SOAK_SEED", "1")), int(os.environ.get("SOAK_FAULTS", "0"))

pytestmark = [
    pytest.mark.faults,
    # Each takes about 13 s; test_master.py has what `make test` can afford.
    pytest.mark.skipif(not ROUNDS, reason="make soak"),
    pytest.mark.timeout(3600),
]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[WatchedPair]:
    async with watched_pair(tmp_path / "pair") as pair:
        yield pair


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_loses_nothing(pair: WatchedPair, fault: str) -> None:
    await lose_nothing(pair, [fault])


async def test_faults_in_any_order_lose_nothing(pair: WatchedPair) -> None:
    await lose_nothing(pair, random.Random(SEED).choices(FAULTS, k=ROUNDS))
