"""Real Sentinels by TLS and with passwords: a failover loses no job, and a refusal is named."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.ledger import lose_nothing
from tests.support.sealed_sentinels import SealedPair
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import Job, QueueUnavailable, open_queue

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[SealedPair]:
    sealed = SealedPair(tmp_path / "pair")
    try:
        await sealed.start()
        await sealed.whole()
        yield sealed
    finally:
        await sealed.end()


@pytest.mark.skipif(not os.environ.get("SOAK_FAULTS"), reason="make soak")
@pytest.mark.parametrize("fault", ["kill", "stop"])
async def test_a_failover_by_tls_loses_nothing(pair: SealedPair, fault: str) -> None:
    await lose_nothing(pair, [fault])


async def test_jobs_run_by_tls_and_refusals_are_named(pair: SealedPair, tmp_path: Path) -> None:
    settings = pair.settings()
    async with open_queue(settings) as queue, running_worker(settings):

        async def stored() -> Job[Any] | None:
            # A machine that stalls for a second makes the Sentinels choose another master.
            with contextlib.suppress(QueueUnavailable):
                return await queue.enqueue("add", 1, b=2)
            return None

        assert await (await eventually(stored)).result(timeout_s=30) == 3
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("LETTA_REDIS_CA_FILE", {"redis_ca_file": tmp_path / "stranger.pem"}),
        ("LETTA_REDIS_SENTINEL_PASSWORD", {"redis_sentinel_password": None}),
        ("LETTA_REDIS_SENTINEL_PASSWORD", {"redis_sentinel_password": "another"}),
    )
    for remedy, changes in wrong:
        async with open_queue(pair.settings(**changes)) as queue, asyncio.timeout(5):
            with pytest.raises(QueueUnavailable, match=remedy):
                await queue.enqueue("add", 1)
