"""Implements `letta-workers jobs` and `workers`: what waits, what runs, and where."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from worker.cli.bulk import actor, jobs_change
from worker.cli.support import json_option, show, with_queue
from worker.client import JobQueue
from worker.errors import InvalidArgument, NotFound
from worker.queue.calls import Call
from worker.queue.fleet import Fleet, WorkerRow
from worker.queue.job import Job
from worker.queue.listing import MOST_ROWS, JobPage
from worker.queue.priority import Priority
from worker.queue.rows import JobRow, JobState


@click.group()
def jobs() -> None:
    """List, show, enqueue, run and abort jobs. `dead` has those that failed for good."""


@jobs.command("list")
@click.option(
    "--state",
    type=click.Choice([state.value for state in JobState]),
    help="Only jobs in this state.",
)
@click.option("--function", help="Only jobs of this function.")
@click.option(
    "--priority",
    type=click.Choice([priority.value for priority in Priority]),
    help="Only jobs of this priority.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_ROWS),
    default=50,
    show_default=True,
    help="Jobs at most.",
)
@click.option("--cursor", default="", help="Go on behind this cursor of an earlier call.")
@json_option
def jobs_list(
    *,
    state: str | None,
    function: str | None,
    priority: str | None,
    limit: int,
    cursor: str,
    as_json: bool,
) -> None:
    """List jobs by priority and due time. Arguments are not shown: they may hold secrets.

    \b
    Examples:
      letta-workers jobs list --state running
      letta-workers jobs list --function send_mail --limit 1000 --json
      letta-workers jobs list --cursor 2:1790000000000.0:5f0c6a...
    """

    async def read(queue: JobQueue) -> JobPage:
        """Follow cursors of pages that a filter left short."""
        found: list[JobRow] = []
        after = cursor
        while True:
            page = await queue.jobs.list(
                state,
                function=function,
                priority=None if priority is None else Priority(priority),
                limit=limit - len(found),
                cursor=after,
            )
            found, after = [*found, *page.jobs], page.cursor
            if not after or len(found) == limit:
                return JobPage(found, after)

    page = with_queue(read)
    lines = [_job_line(row) for row in page.jobs] or ["no jobs"]
    more = [f"more: --cursor {page.cursor}"] if page.cursor else []
    show(asdict(page), as_json, lambda: lines + more)


@jobs.command("show")
@click.argument("job_id")
@json_option
def jobs_show(job_id: str, as_json: bool) -> None:
    """Show one job: what it is, whether it waits or runs, and where.

    \b
    Examples:
      letta-workers jobs show 5f0c6a...
    """
    row = with_queue(lambda queue: queue.jobs.describe(job_id))
    show(asdict(row), as_json, lambda: [f"{name}: {value}" for name, value in asdict(row).items()])


@jobs.command("abort")
@click.argument("job_id")
@json_option
def jobs_abort(job_id: str, as_json: bool) -> None:
    """Abort one job, whether it waits or runs, and wait up to 10 s for its end.

    \b
    Examples:
      letta-workers jobs abort 5f0c6a...
    """
    if not with_queue(lambda queue: queue.jobs.get(job_id).abort()):
        raise NotFound(f"no job {job_id!r} waits or runs")
    show({"aborted": job_id}, as_json, lambda: [f"aborted {job_id}"])


@jobs.command("run-now")
@click.argument("job_id")
@json_option
def jobs_run_now(job_id: str, as_json: bool) -> None:
    """Make a deferred job due now, one that waits for a retry included.

    \b
    Examples:
      letta-workers jobs run-now 5f0c6a...
    """

    async def work(queue: JobQueue) -> bool:
        done = bool(await queue.jobs.run_now(job_id))
        if not done:
            await queue.jobs.describe(job_id)
        outcome = "it is due now" if done else "it is not deferred"
        await queue.jobs.audit.record(actor(), "jobs/run", job_id, outcome)
        return done

    done = with_queue(work)
    line = f"{job_id} is due now" if done else f"{job_id} is not deferred"
    show({"run": job_id, "changed": done}, as_json, lambda: [line])


@jobs.command("add")
@click.argument("function")
@click.option("--args", "args_json", default="[]", help="A JSON list of positional arguments.")
@click.option("--kwargs", "kwargs_json", default="{}", help="A JSON object of named arguments.")
@click.option(
    "--priority",
    type=click.Choice([each.value for each in Priority]),
    default="default",
    help="The job's priority.",
)
@click.option("--id", "job_id", help="The job's id; nothing is stored while a job has it.")
@click.option("--delay", "delay_s", type=click.FloatRange(0), default=0.0, help="Seconds.")
@json_option
def jobs_add(
    *,
    function: str,
    args_json: str,
    kwargs_json: str,
    priority: str,
    job_id: str | None,
    delay_s: float,
    as_json: bool,
) -> None:
    """Enqueue a job by hand. A function that no worker has is parked.

    \b
    Examples:
      letta-workers jobs add send_mail --args '["kim@example.com"]'
      letta-workers jobs add rebuild --kwargs '{"full": true}' --priority low --delay 60
    """
    args, kwargs = _json("--args", args_json, list), _json("--kwargs", kwargs_json, dict)
    each = Call(function, tuple(args), kwargs, Priority(priority), job_id, delay_s)

    async def work(queue: JobQueue) -> Job[Any]:
        job = await queue.jobs.add(each)
        outcome = f"enqueued {job.id}" if job.is_new else f"a job {job.id} waits or runs"
        await queue.jobs.audit.record(actor(), "jobs/add", f"function {function}", outcome)
        return job

    job = with_queue(work)
    line = f"enqueued {job.id}" if job.is_new else f"a job {job.id} waits or runs already"
    show({"id": job.id, "is_new": job.is_new}, as_json, lambda: [line])


def _json(option: str, text: str, wanted: type) -> Any:
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise InvalidArgument(f"{option} is not JSON: {exc}") from None
    if not isinstance(found, wanted):
        kind = "list" if wanted is list else "object"
        raise InvalidArgument(f"{option} must be a JSON {kind}")
    return found


jobs.add_command(jobs_change)


@click.command()
@json_option
def workers(as_json: bool) -> None:
    """List the workers of all machines: where they run, what they do and use; also lapsed ones.

    cpu is a share of one core, lag by how much the event loop was late. A worker that lapsed has no
    heartbeat: it died, or its event loop is blocked. It is forgotten within about a minute.

    \b
    Examples:
      letta-workers workers
      letta-workers workers --json | jq '.[].running'
    """
    fleet: Fleet = with_queue(lambda queue: queue.jobs.fleet())
    rows = [*fleet.workers, *fleet.lapsed]
    lines = [_worker_line(row) for row in rows]
    nothing = [] if fleet.workers else ["no worker is alive; start them with `letta-workers run`"]
    show([asdict(row) for row in rows], as_json, lambda: lines + nothing)


def _job_line(row: JobRow) -> str:
    due = row.due_at.isoformat(timespec="seconds")
    where = f"  on {row.worker}" if row.worker else ""
    return (
        f"{due}  {row.id}  {row.function or '<unreadable>'}  {row.state}  {row.priority}"
        f"  tries={row.tries}{where}"
    )


def _worker_line(row: WorkerRow) -> str:
    seen = "-" if row.heartbeat_at is None else row.heartbeat_at.isoformat(timespec="seconds")
    head = f"{row.id}  {row.host} pid={row.pid}"
    if row.is_lapsed:
        return f"{head}  lapsed  heartbeat={seen}"
    since = "-" if row.started_at is None else row.started_at.isoformat(timespec="seconds")
    draining = "  draining" if row.draining else ""
    return (
        f"{head}  since {since}  running={row.running}/{row.max_jobs}"
        f"  completed={row.completed} failed={row.failed} retried={row.retried}"
        f"  version={row.version or '-'}  memory={_figure(row.memory_bytes, 'MB', 1e6)}"
        f" cpu={_figure(row.cpu, '%', 0.01)} lag={_figure(row.lag_s, 'ms', 0.001)}"
        f"  heartbeat={seen}{draining}"
    )


def _figure(value: float | None, unit: str, size: float) -> str:
    return "-" if value is None else f"{value / size:.0f}{unit}"
