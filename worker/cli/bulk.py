"""Implements `letta-workers jobs change` and `dead change`, which change everything that matches filters."""

from __future__ import annotations

import asyncio
import getpass
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from settings import read_settings
from worker.cli.support import EXIT_INTERRUPTED, json_option, show, with_queue
from worker.client import JobQueue
from worker.errors import InvalidArgument
from worker.queue.bulk import BulkStep
from worker.queue.filters import JobFilter
from worker.queue.priority import Priority
from worker.queue.rows import JobState

_AGE_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_PAST = {"cancel": "canceled", "run": "due now", "retry": "retried", "delete": "deleted"}


def _age(text: str) -> float:
    """Seconds of `90s`, `15m`, `2h` or `7d`."""
    if text[:-1].isdecimal() and text[-1] in _AGE_S:
        return float(text[:-1]) * _AGE_S[text[-1]]
    raise click.BadParameter(f"{text!r} is not an age; accepted: 90s, 15m, 2h, 7d")


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option,
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Only count."),
        click.option(
            "--argument",
            "arguments",
            multiple=True,
            metavar="PATH=TEXT",
            help="0=a or user.id=7; repeatable. Needs LETTA_WEB_SHOW_ARGUMENTS.",
        ),
        click.option(
            "--older-than", "age_s", type=_age, default="0s", metavar="AGE", help="15m, 2h, 7d."
        ),
        click.option("--min-tries", type=click.IntRange(0), default=0, help="Charged so far."),
        click.option("--id-prefix", default="", help="Only ids that begin so."),
        click.option(
            "--priority",
            type=click.Choice([each.value for each in Priority]),
            help="Only jobs of this priority.",
        ),
        click.option("--function", help="Only jobs of this function."),
    ):
        command = option(command)
    return command


@click.command("change")
@click.argument("action", type=click.Choice(["cancel", "run"]))
@click.option(
    "--state",
    type=click.Choice([state.value for state in JobState]),
    help="Only jobs in this state.",
)
@_filters
def jobs_change(action: str, state: str | None, **options: Any) -> None:
    """Cancel all jobs that match the filters, or make the deferred ones due now.

    The filters combine; without one, all jobs are meant. Ctrl-C stops between two steps and says
    how many were done (exit code 130); the same call again does the rest.

    \b
    Examples:
      letta-workers jobs change cancel --function send_mail --dry-run
      letta-workers jobs change cancel --state queued --older-than 2h --yes
      letta-workers jobs change run --id-prefix import- --json --yes
    """
    _change(action, None if state is None else JobState(state), error="", **options)


@click.command("change")
@click.argument("action", type=click.Choice(["retry", "delete"]))
@click.option("--error", default="", help="Only with this text in their reason or error.")
@_filters
def dead_change(action: str, error: str, **options: Any) -> None:
    """Retry or delete all dead letters that match the filters.

    The filters combine; without one, all are meant. Ctrl-C stops between two steps and says how
    many were done (exit code 130); the same call again does the rest.

    \b
    Examples:
      letta-workers dead change retry --error timeout --dry-run
      letta-workers dead change delete --function send_mail --older-than 7d --yes
    """
    _change(action, None, error=error, **options)


def _change(
    action: str,
    state: JobState | None,
    *,
    error: str,
    function: str | None,
    priority: str | None,
    id_prefix: str,
    min_tries: int,
    age_s: float,
    arguments: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    wanted = JobFilter(
        function=function,
        priority=None if priority is None else Priority(priority),
        id_prefix=id_prefix,
        min_tries=min_tries,
        min_age_s=age_s,
        error=error,
        arguments=_arguments(arguments),
    )
    if not (dry_run or yes):
        click.confirm(f"{action} everything that matches?", abort=True, err=True)

    async def work(queue: JobQueue) -> tuple[BulkStep, bool]:
        return await _until_stopped(queue, action, wanted, state, dry_run=dry_run, quiet=as_json)

    total, is_stopped = with_queue(work)
    line = f"{total.matched} of {total.looked} match"
    if not dry_run:
        line = f"{total.done} {_PAST[action]}; {line}"
    data = {"action": action, **asdict(total), "dry_run": dry_run, "stopped": is_stopped}
    show(data, as_json, lambda: [line + ("; stopped" if is_stopped else "")])
    if is_stopped:
        raise SystemExit(EXIT_INTERRUPTED)


async def _until_stopped(
    queue: JobQueue,
    action: str,
    wanted: JobFilter,
    state: JobState | None,
    *,
    dry_run: bool,
    quiet: bool,
) -> tuple[BulkStep, bool]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)

    def progress(total: BulkStep) -> bool:
        if not quiet and total.cursor:
            click.echo(f"{total.looked} looked at, {total.done} done", err=True)
        return not stop.is_set()

    try:
        total = await queue.bulk.run(
            action, wanted, state=state, dry_run=dry_run, progress=progress
        )
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    if not dry_run:
        outcome = f"{total.done} of {total.matched} changed among {total.looked}"
        await queue.jobs.audit.record(actor(), f"bulk {action}", str(wanted), outcome)
    return total, stop.is_set() and bool(total.cursor)


def _arguments(given: tuple[str, ...]) -> dict[str, str]:
    if given and not read_settings().web_show_arguments:
        raise InvalidArgument("arguments can be compared only with LETTA_WEB_SHOW_ARGUMENTS")
    pairs = [each.partition("=") for each in given]
    for (path, sign, _), each in zip(pairs, given, strict=True):
        if not path or not sign:
            raise InvalidArgument(f"--argument {each!r} is not PATH=TEXT")
    return {path: text for path, _, text in pairs}


def actor() -> str:
    """Who runs the command, for the audit trail."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "cli"
