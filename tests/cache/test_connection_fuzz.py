"""
A shared connection gives each reply to its caller, whatever callers hand in and whenever it breaks.

`FUZZ_S=600` runs it longer; `-s` shows what was counted.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.pool import PoolOptions, open_pool
from tests.support.caches import PATIENT_S
from tests.support.connection_fuzz import ConnectionFuzz, break_often
from tests.support.fault_proxy import fault_proxy

pytestmark = pytest.mark.faults

SECONDS = float(os.environ.get("FUZZ_S", "5"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))


async def test_each_reply_goes_to_its_caller(valkey_url: str, prefix: str) -> None:
    loop = asyncio.get_running_loop()
    async with fault_proxy(valkey_url.removeprefix("unix://").partition("?")[0]) as proxy:
        options = PoolOptions(retries=0)
        for eager in (False, True):
            end = loop.time() + SECONDS / 2

            def is_over(end: float = end) -> bool:
                return loop.time() > end

            async with open_pool(proxy.url, options, name="t") as client:
                connection = MultiplexedConnection(client, timeout_s=PATIENT_S, eager=eager)
                fuzz = ConnectionFuzz(connection, prefix, SEED)
                await fuzz.prepare()
                breaking = asyncio.create_task(break_often(proxy, SEED))
                await fuzz.run(is_over)
                breaking.cancel()
                await connection.close()
            counts = dict(fuzz.counts)
            print(f"eager={eager} cuts={proxy.cuts_made} {counts}")  # noqa: T201
            assert "WRONG" not in counts
            assert connection.desynchronized == 0
            for outcome in ("right", "canceled", "not encodable", "away"):
                assert counts[outcome] > 20, counts
            assert proxy.cuts_made > 5
