"""What a fault sets on a server does not outlast it, also where Sentinels write the server's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clusters import Node
from tests.support.sentinel_faults import WatchedPair
from tests.support.wait import eventually

pytestmark = pytest.mark.faults


async def test_a_cut_replica_follows_again_after_promotion_and_restart(tmp_path: Path) -> None:
    pair = WatchedPair(tmp_path / "pair")
    first, second = pair.first, pair.second
    first.configure("repl-diskless-sync-delay 0")
    second.configure(f"replicaof 127.0.0.1 {first.port}")
    try:
        first.start()
        second.start()
        async with pair.cut_from(first):
            # As Sentinels do it.
            await second.ask("REPLICAOF", "NO", "ONE")
            await second.ask("CONFIG", "REWRITE")
        second.kill()
        second.start()
        await second.client.connection_pool.disconnect()
        await second.ask("REPLICAOF", "127.0.0.1", first.port)

        await eventually(lambda: _follows(second), deadline_s=20)
    finally:
        await pair.end()


async def _follows(node: Node) -> bool:
    return bool((await node.client.info("replication"))["master_link_status"] == "up")
