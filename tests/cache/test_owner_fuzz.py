"""
A pool of a cluster's slot gives each reply to its caller, whatever is canceled, cut or moved.

`FUZZ_S=600` runs it longer; `-s` shows what was counted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cache.connection.cluster import ClusterConnection
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.shared_scripts import ScriptRedis
from tests.support.owner_fuzz import ClusterFuzz, EchoNode, OwnerFuzz, Slot
from tests.support.servers import raw_server

pytestmark = pytest.mark.faults

SECONDS = float(os.environ.get("FUZZ_S", "2"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
OUTCOMES = {"right": 500, "canceled": 50, "cuts": 10, "moves": 5}


@asynccontextmanager
async def moving_slot() -> AsyncIterator[tuple[Slot, str]]:
    """Two nodes that own all slots by turns; gives the URL of their cluster."""
    slot = Slot(SEED)
    nodes = [EchoNode(slot, number) for number in range(2)]
    async with raw_server(nodes[0].serve) as first, raw_server(nodes[1].serve) as second:
        slot.ports = [first, second]
        yield slot, f"redis+cluster://127.0.0.1:{first},127.0.0.1:{second}"
    print(dict(slot.counts))  # noqa: T201
    assert "WRONG" not in slot.counts


async def run(fuzz: OwnerFuzz | ClusterFuzz, slot: Slot) -> None:
    loop = asyncio.get_running_loop()
    over_at = loop.time() + SECONDS

    def is_over() -> bool:
        """Whether the time is over and enough has happened: a busy machine takes longer."""
        often = all(slot.counts[name] > least for name, least in OUTCOMES.items())
        return loop.time() > over_at and often

    async with asyncio.timeout(SECONDS + 120):
        await fuzz.run(is_over)


async def test_each_reply_of_a_moving_slot_goes_to_its_caller() -> None:
    async with moving_slot() as (slot, url):
        pool = open_pool(url, PoolOptions(), name="t", client_class=ScriptRedis, tag="{t}")
        async with pool as client:
            await run(OwnerFuzz(client, slot), slot)


async def test_each_reply_of_a_cluster_goes_to_its_caller() -> None:
    async with moving_slot() as (slot, url), open_pool(url, PoolOptions(), name="t") as client:
        connection = ClusterConnection(client, timeout_s=5)
        await run(ClusterFuzz(connection, slot), slot)
        await connection.close()
