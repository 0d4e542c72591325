"""Counts the ends that a poll has reported, and logs what the server did with them."""

from __future__ import annotations

from collections.abc import Sequence

from cache.logs import get_logger
from worker.engine.parking import ParkedReport
from worker.engine.records import Claim, End, PollResult
from worker.engine.slots import Outcome
from worker.engine.state import WorkerState

log = get_logger(__name__)


def account(
    worker: WorkerState, batch: Sequence[Outcome], polled: PollResult, parked: ParkedReport
) -> bool:
    """Count the ends of this batch by their outcomes. Return whether a job was parked."""
    late, buried, has_parked = set(polled.late), set(polled.buried), False
    for index, (claim, end, outcome) in enumerate(batch):
        if claim.recorded is not None and outcome != "started":
            claim.recorded.set()
        if index in late:
            log.warning("job.ended_late", job_id=claim.job_id, outcome=outcome)
        elif outcome == "completed":
            worker.jobs_complete += 1
        elif outcome in ("retried", "given_back"):
            worker.jobs_retried += 1
            worker.jobs_given_back += outcome == "given_back"
        elif outcome == "parked" and index not in buried:
            parked.note(claim.job_id, end[4]["name"])
            has_parked = True
        elif outcome not in ("started", "unstarted"):
            worker.jobs_failed += 1
            worker.jobs_retried += claim.asked_again
            worker.jobs_dead += outcome != "aborted"
            if outcome == "parked":
                _log_unknown(claim, end)
    return has_parked


def _log_unknown(claim: Claim, end: End) -> None:
    details = end[4]
    log.warning(
        "job.died",
        job_id=claim.job_id,
        task=details["name"],
        reason=details["reason"],
        tries=details["tries"],
        error=details["error"],
    )
