"""
The queue's side in Redis: store a job, read its state and result, ask for its end.

Keys and their bounds: docs/keys.md. The layout is stock arq's, so that stock
clients read it: `job:<id>` holds msgpack {t, f, a, k, et}, the queue's sorted
set the due time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cache import codec
from cache.keys import QueueKeys
from cache.scripts import load
from worker.policy.priority import Priority

_ENQUEUE = load("worker.effects", "enqueue")
_ABORT = load("worker.effects", "abort")


class JobStatus(StrEnum):
    """Where a job is. The values are arq's."""

    DEFERRED = "deferred"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended: `value` is its result, or the exception it ended with."""

    success: bool
    value: Any
    tries: int


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """One priority's numbers; `oldest_age_s` is how long the longest-due job waits."""

    queued: int
    deferred: int
    running: int
    oldest_age_s: float


def job_body(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    now_ms: int,
    try_: int | None = None,
) -> bytes:
    """
    Encode a job as arq does.

    Raises:
        cache.errors.NotEncodable: an argument has no safe encoding.
    """
    return codec.encode({"t": try_, "f": name, "a": list(args), "k": dict(kwargs), "et": now_ms})


class QueueStore:
    """Reads and writes the queue through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self.client = client
        self.keys = keys

    def job_keys(self, job_id: str, priority: Priority) -> list[str]:
        """What `_put_job.lua` writes: queue, body, result, wake token."""
        keys = self.keys
        return [keys.queue(priority), keys.job(job_id), keys.result(job_id), keys.wake]

    async def put(
        self, job_id: str, body: bytes, *, priority: Priority, delay_ms: int, due_ms: int | None
    ) -> bool:
        """Store a job; False when one of this id waits or runs already."""
        args = [job_id, body, delay_ms, "" if due_ms is None else due_ms]
        return bool(await _ENQUEUE.run(self.client, self.job_keys(job_id, priority), args))

    async def status(self, job_id: str) -> JobStatus:
        keys = self.keys
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.exists(keys.result(job_id))
            pipe.exists(keys.in_progress(job_id))
            pipe.time()
            for priority in Priority:
                pipe.zscore(keys.queue(priority), job_id)
            done, running, (seconds, micros), *scores = await pipe.execute()
        due = next((score for score in scores if score is not None), None)
        if done:
            return JobStatus.COMPLETE
        if running:
            return JobStatus.IN_PROGRESS
        if due is None:
            return JobStatus.NOT_FOUND
        return JobStatus.DEFERRED if due > seconds * 1000 + micros // 1000 else JobStatus.QUEUED

    async def result(self, job_id: str) -> JobResult | None:
        """
        How the job ended, or None while it has not (or its result is no longer kept).

        Raises:
            cache.errors.CodecError: the stored bytes are not a result.
        """
        data = await self.client.get(self.keys.result(job_id))
        if data is None:
            return None
        fields = codec.decode(data)
        return JobResult(bool(fields["s"]), fields["r"], int(fields["t"] or 1))

    async def abort(self, job_id: str) -> bool:
        """Ask for a job's end; False when no such job waits or runs."""
        keys = self.keys
        names = [keys.abort, keys.job(job_id), keys.in_progress(job_id), keys.wake]
        queues = [keys.queue(priority) for priority in Priority]
        return bool(await _ABORT.run(self.client, names + queues, [job_id]))

    async def counts(self) -> dict[Priority, QueueCounts]:
        """Depth and age of each priority, one consistent look."""
        seconds, micros = await self.client.time()
        now = seconds * 1000 + micros // 1000
        rows = await asyncio.gather(*(self._count(priority, now) for priority in Priority))
        return dict(zip(Priority, rows, strict=True))

    async def _count(self, priority: Priority, now: int) -> QueueCounts:
        queue = self.keys.queue(priority)
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.zcount(queue, "-inf", now)
            pipe.zcount(queue, f"({now}", "+inf")
            pipe.zrange(queue, 0, 0, withscores=True)
            due, later, head = await pipe.execute()
        age = max(0.0, (now - head[0][1]) / 1000) if head and due else 0.0
        return QueueCounts(queued=due, deferred=later, running=0, oldest_age_s=round(age, 3))
