"""
A shared connection gives each reply to its caller, whatever callers hand in and whenever it breaks.

`FUZZ_S=600` runs it longer; `-s` shows what was counted.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from cache.connection import incarnation
from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.tasks import end
from tests.support.caches import PATIENT_S
from tests.support.connection_fuzz import ConnectionFuzz, break_often
from tests.support.fault_proxy import fault_proxy

pytestmark = pytest.mark.faults

SECONDS = float(os.environ.get("FUZZ_S", "5"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
OUTCOMES = ("right", "canceled", "not encodable", "away")


async def test_each_reply_goes_to_its_caller(
    valkey_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incarnation, "ASK_EVERY_S", 0.0)
    loop = asyncio.get_running_loop()
    async with fault_proxy(valkey_url.removeprefix("unix://").partition("?")[0]) as proxy:
        options = PoolOptions(retries=0)
        for eager in (False, True):
            async with open_pool(proxy.url, options, name="t") as client:
                # The cache's connection is the one that is not eager. It asks for the run all the time.
                connection = MultiplexedConnection(
                    client, timeout_s=PATIENT_S, eager=eager, follows_run=not eager
                )
                fuzz = ConnectionFuzz(connection, prefix, SEED)
                await fuzz.prepare()
                breaking = asyncio.create_task(break_often(proxy, SEED))
                over_at, cuts = loop.time() + SECONDS / 2, proxy.cuts_made + 5

                def is_over(
                    fuzz: ConnectionFuzz = fuzz, at: float = over_at, cuts: int = cuts
                ) -> bool:
                    """Whether the time is over and enough has happened: a busy machine takes longer."""
                    often = all(fuzz.counts[outcome] > 20 for outcome in OUTCOMES)
                    return loop.time() > at and often and proxy.cuts_made > cuts

                await fuzz.run(is_over)
                await end(breaking)
                await connection.close()
            counts = dict(fuzz.counts)
            print(f"eager={eager} cuts={proxy.cuts_made} {counts}")  # noqa: T201
            assert "WRONG" not in counts
            assert connection.desynchronized == 0
