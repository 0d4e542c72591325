"""Reads the state of the queue's server: memory, evictions and replication."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.numbers import whole
from worker.queue.job import reach

_SECTIONS = ("memory", "stats", "replication")


@dataclass(frozen=True, slots=True)
class ServerState:
    """
    What the server reports about itself, since its start.

    memory_max_bytes: 0 without a limit. replicas_syncing: connected, but without all data yet.
    replica_lag_bytes: lag of the slowest replica; 0 without one.
    is_primary_linked: False on a replica that has lost its primary.
    """

    memory_used_bytes: int
    memory_max_bytes: int
    evicted_keys: int
    replicas_online: int
    replicas_syncing: int
    replica_lag_bytes: int
    is_primary_linked: bool


async def read_server(client: Any) -> ServerState:
    """
    Ask the server in one round trip.

    Raises:
        QueueUnavailable: the server cannot be reached, or denies INFO.
    """
    async with client.pipeline(transaction=False) as pipe:
        for section in _SECTIONS:
            pipe.info(section)
        memory, stats, replication = await reach(pipe.execute())
    return server_state({**memory, **stats, **replication})


def server_state(info: Mapping[str, Any]) -> ServerState:
    """Read the fields of INFO; a missing one is 0."""
    # slave0, slave1, ...: one mapping for each replica.
    replicas = [
        value
        for name, value in info.items()
        if name.startswith("slave") and name[5:].isdigit() and isinstance(value, Mapping)
    ]
    online = sum(replica.get("state") == "online" for replica in replicas)
    written = _number(info, "master_repl_offset")
    lags = [max(0, written - _number(replica, "offset")) for replica in replicas]
    return ServerState(
        memory_used_bytes=_number(info, "used_memory"),
        memory_max_bytes=_number(info, "maxmemory"),
        evicted_keys=_number(info, "evicted_keys"),
        replicas_online=online,
        replicas_syncing=len(replicas) - online,
        replica_lag_bytes=max(lags, default=0),
        is_primary_linked=info.get("master_link_status", "up") == "up",
    )


def _number(fields: Mapping[str, Any], name: str) -> int:
    return whole(fields.get(name))
