"""Implements `letta-workers schedules`: lists repeating jobs and crons, runs them, switches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from worker.cli.bulk import actor
from worker.cli.support import json_option, show, with_queue
from worker.client import JobQueue
from worker.queue.job import Job
from worker.queue.priority import Priority
from worker.queue.schedules import ScheduleState
from worker.queue.switches import CronState


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def schedules(ctx: click.Context, as_json: bool) -> None:
    """List the repeating jobs that clients registered, with their next and last run.

    \b
    Examples:
      letta-workers schedules
      letta-workers schedules --json
      letta-workers schedules run nightly
      letta-workers schedules off nightly
    """
    if ctx.invoked_subcommand is not None:
        return
    found: Sequence[ScheduleState] = with_queue(lambda queue: queue.jobs.schedule_states())
    rows = [_schedule(each) for each in found]
    show(rows, as_json, lambda: [_schedule_line(row) for row in rows] or ["no schedules"])


@schedules.command("run")
@click.argument("name")
@json_option
def schedules_run(name: str, as_json: bool) -> None:
    """Run a repeating job or a cron once, now. Its next run is unchanged.

    \b
    Examples:
      letta-workers schedules run nightly
      letta-workers schedules run cron:app.jobs:clean_up
    """

    async def work(queue: JobQueue) -> Job[Any]:
        job = await queue.jobs.run_schedule(name)
        outcome = f"enqueued {job.id}"
        await queue.jobs.audit.record(actor(), "schedules/run", name, outcome)
        return job

    job = with_queue(work)
    show({"id": job.id}, as_json, lambda: [f"enqueued {job.id}"])


@schedules.command("crons")
@json_option
def schedules_crons(as_json: bool) -> None:
    """List the crons of the workers' settings, with their next and last tick.

    \b
    Examples:
      letta-workers schedules crons
      letta-workers schedules crons --json
    """
    found: list[CronState] = with_queue(lambda queue: queue.jobs.switches.crons())
    lines = [_cron_line(each) for each in found] or ["no crons"]
    show([asdict(each) for each in found], as_json, lambda: lines)


@schedules.command("off")
@click.argument("name")
@json_option
def schedules_off(name: str, as_json: bool) -> None:
    """Stop running a repeating job or a cron, in all workers, until you switch it on.

    Queued runs stay. A client that registers the repeating job again leaves it off.

    \b
    Examples:
      letta-workers schedules off nightly
      letta-workers schedules off cron:app.jobs:clean_up --json
    """
    _switch(name, as_json, on=False)


@schedules.command("on")
@click.argument("name")
@json_option
def schedules_on(name: str, as_json: bool) -> None:
    """Run a repeating job or a cron again, from its next tick on; missed runs are skipped.

    \b
    Examples:
      letta-workers schedules on nightly
      letta-workers schedules on cron:app.jobs:clean_up --json
    """
    _switch(name, as_json, on=True)


def _switch(name: str, as_json: bool, *, on: bool) -> None:
    state = "on" if on else "off"

    async def work(queue: JobQueue) -> bool:
        switches = queue.jobs.switches
        is_new = await (switches.on(name) if on else switches.off(name))
        outcome = state if is_new else f"it was {state} already"
        await queue.jobs.audit.record(actor(), f"schedules/{state}", name, outcome)
        return is_new

    is_new = with_queue(work)
    line = f"{name} is {state}" if is_new else f"{name} was {state} already"
    show({"name": name, "on": on, "changed": is_new}, as_json, lambda: [line])


def _schedule(state: ScheduleState) -> dict[str, Any]:
    schedule = state.schedule
    every = None if schedule.every_s is None else f"every {schedule.every_s:g} s"
    return {
        "id": schedule.id,
        "function": schedule.job.name,
        "rhythm": every or schedule.cron,
        "priority": Priority(schedule.job.priority).value,
        "next_at": state.next_at,
        "last_at": state.last_at,
        "last_job": state.last_job,
        "last_outcome": state.last_outcome,
        "is_on": state.is_on,
    }


def _schedule_line(row: dict[str, Any]) -> str:
    following, last = (_moment(row[name]) for name in ("next_at", "last_at"))
    became = _became(row["last_outcome"])
    head = f"{row['id']}  {row['function']}  {row['rhythm']}  {row['priority']}"
    off = "" if row["is_on"] else "  off"
    return f"{head}  next={following}  last={last}{became}{off}"


def _cron_line(cron: CronState) -> str:
    off = "" if cron.off_since is None else f"  off since {_moment(cron.off_since)}"
    last = f"{_moment(cron.last_at)}{_became(cron.last_outcome)}"
    return f"{cron.name}  next={_moment(cron.next_at)}  last={last}{off}"


def _became(outcome: str) -> str:
    return f" {outcome}" if outcome else ""


def _moment(at: datetime | None) -> str:
    return "-" if at is None else at.isoformat(timespec="seconds")
