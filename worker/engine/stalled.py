"""A job that its workers did not survive: its waiters get an answer."""

from __future__ import annotations

from arq.worker import JobExecutionFailed

from cache.connection.pool import OUTAGE
from worker.engine.state import WorkerState


async def tell(worker: WorkerState, ids: list[bytes]) -> None:
    """Store a failed result for each, as far as results are kept and none is there."""
    keep_s = worker.keep_result_s or 0
    if keep_s <= 0 or worker.job_serializer is None:
        return
    error = JobExecutionFailed("poison: its workers died while it ran")
    now = worker.server_ms()
    for id_ in ids:
        job_id = id_.decode(errors="replace")
        fields = {"t": worker.options.max_lost_leases, "f": "<unknown>", "a": [], "k": {}}
        times = {"et": now, "st": now, "ft": now, "q": worker.queue_name, "id": job_id}
        data = worker.job_serializer({**fields, "s": False, "r": error, **times})
        try:
            await worker.pool.set(
                worker.keys.base.result(job_id), data, px=round(keep_s * 1000), nx=True
            )
        except OUTAGE:
            return
