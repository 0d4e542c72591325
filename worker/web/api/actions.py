"""The actions of operators: what each one takes, and what it does through the facade."""

from __future__ import annotations

from worker.client import JobQueue
from worker.errors import NotFound, ResultTimeout
from worker.web.api.many import add_job, change_dead, change_jobs
from worker.web.api.performing import Action
from worker.web.api.queries import (
    BulkDead,
    BulkJobs,
    ByEndpoint,
    ByFunction,
    ById,
    ByPriority,
    NewJob,
    Nothing,
)
from worker.web.api.views import BulkDone, Done
from worker.web.api.webhook_reads import known_endpoint, named

# A worker sees an abort within a second; the caller need not wait for its job to clean up.
_ABORT_S = 2.0


async def _run_job(queue: JobQueue, target: ById) -> Done:
    if await queue.jobs.run_now(target.id):
        return Done(True, "it is due now")
    await queue.jobs.describe(target.id)
    return Done(False, "nothing done: it is not deferred")


async def _cancel_job(queue: JobQueue, target: ById) -> Done:
    job = queue.jobs.get(target.id)
    try:
        if await job.abort(timeout_s=_ABORT_S):
            return Done(True, "canceled")
    except ResultTimeout:
        return Done(True, "cancel requested: a worker ends the job soon")
    raise NotFound(f"no job {target.id!r} waits or runs")


async def _retry_dead(queue: JobQueue, target: ById) -> Done:
    await _require_dead(queue, target.id)
    if await queue.dead.retry(target.id):
        return Done(True, "enqueued again")
    return Done(False, "nothing done: a job of this id waits or runs, or the body was not kept")


async def _delete_dead(queue: JobQueue, target: ById) -> Done:
    await _require_dead(queue, target.id)
    return Done(bool(await queue.dead.purge(target.id)), "deleted")


async def _require_dead(queue: JobQueue, job_id: str) -> None:
    if await queue.dead.get(job_id) is None:
        raise NotFound(f"no dead letter {job_id!r}")


async def _pause_function(queue: JobQueue, target: ByFunction) -> Done:
    return _paused(await queue.jobs.pauses.pause(function=target.function))


async def _resume_function(queue: JobQueue, target: ByFunction) -> Done:
    return _resumed(await queue.jobs.pauses.resume(function=target.function))


async def _pause_priority(queue: JobQueue, target: ByPriority) -> Done:
    return _paused(await queue.jobs.pauses.pause(priority=target.priority))


async def _resume_priority(queue: JobQueue, target: ByPriority) -> Done:
    return _resumed(await queue.jobs.pauses.resume(priority=target.priority))


def _paused(changed: bool) -> Done:
    return Done(changed, "paused; running jobs continue" if changed else "it was paused already")


def _resumed(changed: bool) -> Done:
    return Done(changed, "resumed" if changed else "it was not paused")


async def _delete_schedule(queue: JobQueue, target: ById) -> Done:
    if await queue.jobs.unschedule(target.id):
        return Done(True, "deleted; queued runs stay")
    raise NotFound(f"no schedule {target.id!r}")


async def _run_schedule(queue: JobQueue, target: ById) -> Done:
    job = await queue.jobs.run_schedule(target.id)
    return Done(True, f"enqueued {job.id}; its next run is unchanged")


async def _switch_off(queue: JobQueue, target: ById) -> Done:
    changed = await queue.jobs.switches.off(target.id)
    return Done(changed, "off; queued runs stay" if changed else "it was off already")


async def _switch_on(queue: JobQueue, target: ById) -> Done:
    changed = await queue.jobs.switches.on(target.id)
    return Done(changed, "on; missed runs are skipped" if changed else "it was on already")


async def _retry_delivery(queue: JobQueue, target: ById) -> Done:
    await queue.webhooks.retry_now(target.id)
    return Done(True, "the next attempt is due now")


async def _replay_delivery(queue: JobQueue, target: ById) -> Done:
    await queue.webhooks.replay(target.id)
    return Done(True, "sent again with priority low")


async def _enable(queue: JobQueue, target: ByEndpoint) -> Done:
    with known_endpoint():
        changed = await queue.webhooks.enable(**named(target))
    return Done(changed, "enabled; replay its deliveries" if changed else "it was not disabled")


async def _disable(queue: JobQueue, target: ByEndpoint) -> Done:
    with known_endpoint():
        changed = await queue.webhooks.disable(**named(target))
    return Done(changed, "disabled" if changed else "it was disabled already")


async def _cancel_batch(queue: JobQueue, target: ById) -> Done:
    changed = await queue.llm.batches.cancel(target.id)
    return Done(changed, "cancel requested" if changed else "it has ended already")


async def _retry_batch(queue: JobQueue, target: ById) -> Done:
    count = await queue.llm.batches.retry(target.id)
    return Done(
        True, f"{count} failed requests wait for a batch again" if count else "its job runs now"
    )


async def _flush(queue: JobQueue, _target: Nothing) -> Done:
    await queue.flush_llm_batches()
    return Done(True, "every waiting request is sent")


ACTIONS = {
    action.name: action
    for action in (
        Action("jobs/cancel", "Cancel", "Cancel a job that waits or runs.", ById, _cancel_job),
        Action("jobs/run", "Run now", "Make a deferred job due now.", ById, _run_job),
        Action(
            "jobs/bulk",
            "Change all",
            "Cancel or run all jobs that match the filters, for about a second.",
            BulkJobs,
            change_jobs,
            BulkDone,
        ),
        Action(
            "dead/bulk",
            "Change all",
            "Retry or delete all dead letters that match the filters, for about a second.",
            BulkDead,
            change_dead,
            BulkDone,
        ),
        Action("jobs/add", "Enqueue", "Enqueue a job by hand.", NewJob, add_job, at="jobs"),
        Action("dead/retry", "Retry", "Enqueue a dead letter again.", ById, _retry_dead),
        Action("dead/delete", "Delete", "Delete a dead letter permanently.", ById, _delete_dead),
        Action("functions/pause", "Pause", "Stop claiming its jobs.", ByFunction, _pause_function),
        Action("functions/resume", "Resume", "End its pause.", ByFunction, _resume_function),
        Action("priorities/pause", "Pause", "Stop claiming its jobs.", ByPriority, _pause_priority),
        Action("priorities/resume", "Resume", "End its pause.", ByPriority, _resume_priority),
        Action(
            "schedules/run",
            "Run now",
            "Run a repeating job or a cron once, now.",
            ById,
            _run_schedule,
        ),
        Action(
            "schedules/off", "Switch off", "Stop running a schedule or a cron.", ById, _switch_off
        ),
        Action("schedules/on", "Switch on", "Run it again from its next tick.", ById, _switch_on),
        Action("schedules/delete", "Delete", "Remove a repeating job.", ById, _delete_schedule),
        Action(
            "deliveries/retry",
            "Retry now",
            "Make the next attempt of an open delivery due now.",
            ById,
            _retry_delivery,
        ),
        Action(
            "deliveries/replay", "Replay", "Send an ended delivery again.", ById, _replay_delivery
        ),
        Action("endpoints/enable", "Enable", "Allow an endpoint again.", ByEndpoint, _enable),
        Action("endpoints/disable", "Disable", "Stop an endpoint.", ByEndpoint, _disable),
        Action("batches/cancel", "Cancel", "Cancel an LLM batch.", ById, _cancel_batch),
        Action(
            "batches/retry",
            "Retry",
            "Submit failed requests of a batch again.",
            ById,
            _retry_batch,
        ),
        Action("llm/flush", "Send now", "Send every waiting LLM request now.", Nothing, _flush),
    )
}
