"""Reads jobs as they are stored, for lists that operators see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from worker.keys import HELD_MS
from worker.numbers import moment, whole
from worker.queue.letters import fields_of
from worker.queue.pauses import Paused
from worker.queue.priority import Priority


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
        due_at=time_of(_due(place, claim)),
        enqueued_at=time_of(fields["et"]) if "et" in fields else None,
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


def _worker_of(claim: bytes | None) -> str:
    """The worker's id in a claim, "<worker>:<run>:<poll>|..." (lua/poll.lua); "" for stock arq's."""
    token, bar, _ = (claim or b"").decode(errors="replace").partition("|")
    return token.rsplit(":", 2)[0] if bar else ""


def time_of(ms: Any) -> datetime:
    if isinstance(ms, float) and math.isfinite(ms):
        ms = round(ms)
    return moment(ms)
