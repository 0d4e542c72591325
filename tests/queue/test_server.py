"""What the queue's server says about itself is read, also where it says little."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.queues import queue_of
from worker.queue.server import server_state


@pytest.mark.unit
def test_replicas_are_counted_and_the_slowest_one_measured() -> None:
    state = server_state(
        {
            "role": "master",
            "used_memory": 10,
            "maxmemory": 100,
            "evicted_keys": 3,
            "connected_slaves": 3,
            "master_repl_offset": 5_000,
            "slave0": {"state": "online", "offset": 4_000, "lag": 0},
            "slave1": {"state": "online", "offset": 6_000, "lag": 0},
            "slave2": {"state": "wait_bgsave", "offset": 0, "lag": 0},
            "slave_expires_tracked_keys": 7,
        }
    )
    assert (state.memory_used_bytes, state.memory_max_bytes, state.evicted_keys) == (10, 100, 3)
    assert (state.replicas_online, state.replicas_syncing) == (2, 1)
    assert state.replica_lag_bytes == 5_000
    assert state.is_primary_linked


@pytest.mark.unit
def test_a_replica_without_its_primary_is_told() -> None:
    assert not server_state({"role": "slave", "master_link_status": "down"}).is_primary_linked
    assert server_state({"role": "slave", "master_link_status": "up"}).is_primary_linked
    assert server_state({"slave0": "odd", "used_memory": "odd"}).memory_used_bytes == 0


@pytest.mark.integration
async def test_a_server_tells_its_memory(client: Any, prefix: str) -> None:
    state = await queue_of(client, prefix).jobs.server()
    assert state.memory_used_bytes > 100_000
    assert state.is_primary_linked
