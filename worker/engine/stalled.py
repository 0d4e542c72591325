"""Stores a failed result for a poison job, so that its waiters get an answer."""

from __future__ import annotations

from arq.worker import JobExecutionFailed

from cache.connection.pool import OUTAGE
from worker.engine.results import encode_result
from worker.engine.state import WorkerState


async def report(worker: WorkerState, ids: list[bytes]) -> None:
    """Store a failed result for each job that has none, when the worker keeps results."""
    keep_s = worker.keep_result_s or 0
    if keep_s <= 0 or worker.job_serializer is None:
        return
    error = JobExecutionFailed("poison: its workers died while it ran")
    now = worker.server_ms()
    for id_ in ids:
        job_id = id_.decode(errors="replace")
        fields = {"t": worker.options.max_lost_leases, "f": "<unknown>", "a": [], "k": {}}
        times = {"et": now, "st": now, "ft": now, "q": worker.queue_name, "id": job_id}
        result = {**fields, "s": False, "r": error, **times}
        data, _ = encode_result(worker.job_serializer, result)
        if data is None:
            return
        try:
            await worker.pool.set(
                worker.keys.base.result(job_id), data, px=round(keep_s * 1000), nx=True
            )
        except OUTAGE:
            return
