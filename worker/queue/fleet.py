"""Reads which workers are live, by their heartbeats, and which have lapsed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.keys import QueueKeys
from worker.numbers import EXACT, whole
from worker.queue.job import reach
from worker.queue.rows import time_of

# Longer ones come from outside; nobody reads them.
_MOST_VERSION = 64


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """
    A worker by its last heartbeat. The counts are of its own process.

    is_lapsed: it has no heartbeat any more; only id, host, pid and heartbeat_at are known then. cpu:
    share of one core. lag_s: by how much its event loop was late with the heartbeat. memory_bytes:
    resident. None where the worker did not tell, as an older release.
    """

    id: str
    host: str
    pid: int
    started_at: datetime | None
    running: int
    max_jobs: int
    completed: int
    failed: int
    retried: int
    draining: bool
    version: str = ""
    memory_bytes: int | None = None
    cpu: float | None = None
    lag_s: float | None = None
    heartbeat_at: datetime | None = None
    is_lapsed: bool = False


@dataclass(frozen=True, slots=True)
class Fleet:
    """
    The live workers, by host and process: a worker is live for three heartbeats.

    lapsed: workers that ended without leaving, or whose event loop is blocked, the one first that was
    seen last. Live workers forget them within about a minute.
    """

    workers: list[WorkerRow]
    lapsed: list[WorkerRow]


async def read_fleet(client: Any, keys: QueueKeys) -> Fleet:
    """
    Read the heartbeats of all workers.

    Raises:
        QueueUnavailable: the server cannot be reached.
    """
    seen = await reach(client.zrange(keys.workers, 0, -1, withscores=True))
    names = [keys.worker(id_.decode(errors="replace")) for id_, _ in seen]
    beats = await reach(client.mget(names)) if names else []
    rows = [row for beat in beats if beat is not None and (row := _worker_row(beat)) is not None]
    lapsed = [
        _lapsed_row(id_, at)
        for (id_, at), beat in reversed([*zip(seen, beats, strict=True)])
        if beat is None
    ]
    return Fleet(sorted(rows, key=lambda row: (row.host, row.pid)), lapsed)


def _worker_row(beat: bytes) -> WorkerRow | None:
    try:
        fields = json.loads(beat)
        return WorkerRow(
            id=str(fields["worker_id"]),
            host=str(fields["host"]),
            pid=whole(fields["pid"]),
            started_at=time_of(float(fields["started"]) * 1000),
            draining=bool(fields["draining"]),
            running=whole(fields["running"]),
            max_jobs=whole(fields["max_jobs"]),
            completed=whole(fields["completed"]),
            failed=whole(fields["failed"]),
            retried=whole(fields["retried"]),
            version=str(fields.get("version", ""))[:_MOST_VERSION],
            memory_bytes=whole(fields.get("memory_bytes")) or None,
            cpu=_measured(fields.get("cpu")),
            lag_s=_measured(fields.get("lag_s")),
            heartbeat_at=time_of(fields["at"]) if "at" in fields else None,
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None  # somebody else's bytes


def _lapsed_row(worker_id: bytes, seen_ms: float) -> WorkerRow:
    """A worker without a heartbeat, by its id, "<host>:<pid>:<digits>" (worker/engine/state.py)."""
    id_ = worker_id.decode(errors="replace")
    host, pid, _ = id_.rsplit(":", 2) if id_.count(":") > 1 else (id_, "", "")
    return WorkerRow(
        id=id_,
        host=host,
        pid=whole(pid),
        started_at=None,
        draining=False,
        running=0,
        max_jobs=0,
        completed=0,
        failed=0,
        retried=0,
        heartbeat_at=time_of(seen_ms),
        is_lapsed=True,
    )


def _measured(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= EXACT else None
