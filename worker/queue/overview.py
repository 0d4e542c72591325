"""Counts waiting and running jobs in a few short commands, however many there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.keys import HELD_MS, EngineKeys, QueueKeys
from worker.queue.job import reach
from worker.queue.priority import Priority


@dataclass(frozen=True, slots=True)
class QueueOverview:
    """The jobs of one priority that are due, and the age of the oldest one in seconds."""

    due: int
    oldest_age_s: float


@dataclass(frozen=True, slots=True)
class Overview:
    """
    A queue's counts. Unlike in `stats()`, jobs that are not due are counted over all priorities.

    paused: due jobs whose function is paused. Jobs of a paused priority count as due.
    replicas: online replicas of the queue's server.
    lease_late_s: the time since the oldest lapsed lease has lapsed, 0 if there is none. A worker
    takes over such a job within seconds.
    """

    queues: Mapping[Priority, QueueOverview]
    deferred: int
    running: int
    paused: int
    parked: int
    dead: int
    deliveries: int
    failing_endpoints: int
    disabled_endpoints: int
    batches: int
    replicas: int
    lease_late_s: float


async def read_overview(client: Any, keys: QueueKeys) -> Overview:
    """
    Read the counts, in one transaction, and the server's replicas.

    Raises:
        QueueUnavailable: the server cannot be reached.
    """
    seconds, micros = await reach(client.time())
    replicas = await _online_replicas(client)
    now_ms = seconds * 1000 + micros // 1000
    running = EngineKeys(keys).running
    async with client.pipeline(transaction=True) as pipe:
        for priority in Priority:
            pipe.zcount(keys.queue(priority), "-inf", now_ms)
            pipe.zcard(keys.queue(priority))
            pipe.zcount(keys.queue(priority), HELD_MS, "+inf")
            pipe.zrange(keys.queue(priority), 0, 0, withscores=True)
        pipe.zrange(running, 0, 0, withscores=True)
        pipe.hlen(keys.parked)
        for key in (
            *(running, keys.dead, keys.webhook_open, keys.webhook_failing),
            *(keys.webhook_disabled, keys.llm_underway),
        ):
            pipe.zcard(key)
        found = await reach(pipe.execute())
    queues, later, paused = {}, 0, 0
    for at, priority in enumerate(Priority):
        due, size, held, head = found[4 * at : 4 * at + 4]
        queues[priority] = QueueOverview(due, _late_s(head, now_ms))
        later += size - due - held
        paused += held
    first_lease, parked, runs, *rest = found[4 * len(Priority) :]
    dead, deliveries, failing, disabled, batches = rest
    return Overview(
        queues,
        # A running job stays in its queue, due after its lease.
        deferred=max(0, later - runs),
        running=runs,
        paused=paused,
        parked=parked,
        dead=dead,
        deliveries=deliveries,
        failing_endpoints=failing,
        disabled_endpoints=disabled,
        batches=batches,
        replicas=replicas,
        lease_late_s=_late_s(first_lease, now_ms),
    )


async def _online_replicas(client: Any) -> int:
    rows = (await reach(client.info("replication"))).values()
    return sum(isinstance(row, dict) and row.get("state") == "online" for row in rows)


def _late_s(head: list[tuple[bytes, float]], now_ms: int) -> float:
    """For how long the first member of a sorted set has been due."""
    return max(0.0, (now_ms - head[0][1]) / 1000) if head else 0.0
