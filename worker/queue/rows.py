"""Reads jobs and workers as they are stored, for lists that operators see."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from worker.keys import HELD_MS
from worker.numbers import EXACT, moment, whole
from worker.queue.letters import fields_of
from worker.queue.pauses import Paused
from worker.queue.priority import Priority

# Longer ones come from outside; nobody reads them.
_MOST_VERSION = 64


class JobState(StrEnum):
    """The state of a job that has not ended."""

    QUEUED = "queued"  # due
    DEFERRED = "deferred"  # due later, a retry included
    RUNNING = "running"
    PARKED = "parked"  # no worker knows its function
    PAUSED = "paused"  # due, but its function or priority is paused


@dataclass(frozen=True, slots=True)
class JobRow:
    """
    One job that has not ended. Its arguments are left out: they may hold secrets.

    due_at: when it was or will be due. tries: charged so far. bytes: size of its body.
    worker: the id of the worker that runs it, else "". function: "" if its body cannot be read.
    """

    id: str
    function: str
    state: JobState
    priority: Priority
    due_at: datetime
    enqueued_at: datetime | None
    tries: int
    worker: str
    bytes: int


@dataclass(frozen=True, slots=True)
class JobCall:
    """What a job calls. The arguments are those that were enqueued, in the types that they had."""

    function: str
    args: list[Any]
    kwargs: dict[str, Any]


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
class Place:
    """A job's place in the queues: its queue's index, its due time there (Unix ms), its id."""

    queue: int
    score: float
    id: bytes


def job_row(
    place: Place,
    body: bytes | None,
    claim: bytes | None,
    tries: bytes | None,
    now_ms: int,
    *,
    is_running: bool,
    since: bytes | None,
    paused: Paused,
) -> JobRow | None:
    if body is None and not is_running and claim is None:
        return None
    fields = fields_of(body or b"")
    name = fields.get("f")
    is_held = place.score >= HELD_MS
    state = JobState.DEFERRED if place.score > now_ms else JobState.QUEUED
    if is_running or claim is not None:
        state = JobState.RUNNING
    elif is_held or (state is JobState.QUEUED and paused.holds(list(Priority)[place.queue], name)):
        state = JobState.PAUSED
    elif since is not None:
        state = JobState.PARKED
    return JobRow(
        id=place.id.decode(errors="replace"),
        function=name if isinstance(name, str) else "",
        state=state,
        priority=list(Priority)[place.queue],
        # A running job's place is where its lease ends.
        due_at=_time(_due(place, claim)),
        enqueued_at=_time(fields["et"]) if "et" in fields else None,
        tries=whole(tries),
        worker=_worker_of(claim) if state is JobState.RUNNING else "",
        bytes=len(body or b""),
    )


def _due(place: Place, claim: bytes | None) -> float:
    if claim:
        return claimed_place(place.id, claim).score
    return place.score - HELD_MS if place.score >= HELD_MS else place.score


def job_call(body: bytes) -> JobCall | None:
    """Read what a stored job calls; None where it cannot be read."""
    fields = fields_of(body)
    name, args, kwargs = (fields.get(key) for key in ("f", "a", "k"))
    if not (isinstance(name, str) and isinstance(args, list | tuple) and isinstance(kwargs, dict)):
        return None
    return JobCall(name, list(args), {str(key): value for key, value in kwargs.items()})


def claimed_place(job_id: bytes, claim: bytes | None) -> Place:
    """The place that a claim names: "token|queue number|due|stalled count" (lua/poll.lua)."""
    _, number, due, *_ = [*(claim or b"").split(b"|"), b"", b""]
    queue = whole(number, most=len(Priority)) or list(Priority).index(Priority.DEFAULT) + 1
    return Place(queue - 1, whole(due), job_id)


def worker_row(beat: bytes) -> WorkerRow | None:
    try:
        fields = json.loads(beat)
        return WorkerRow(
            id=str(fields["worker_id"]),
            host=str(fields["host"]),
            pid=whole(fields["pid"]),
            started_at=_time(float(fields["started"]) * 1000),
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
            heartbeat_at=_time(fields["at"]) if "at" in fields else None,
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None  # somebody else's bytes


def lapsed_row(worker_id: bytes, seen_ms: float) -> WorkerRow:
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
        heartbeat_at=_time(seen_ms),
        is_lapsed=True,
    )


def _measured(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= EXACT else None


def _worker_of(claim: bytes | None) -> str:
    """The worker's id in a claim, "<worker>:<run>:<poll>|..." (lua/poll.lua); "" for stock arq's."""
    token, bar, _ = (claim or b"").decode(errors="replace").partition("|")
    return token.rsplit(":", 2)[0] if bar else ""


def _time(ms: Any) -> datetime:
    if isinstance(ms, float) and math.isfinite(ms):
        ms = round(ms)
    return moment(ms)
