"""Implements `letta-workers dead`: list, retry and purge dead letters."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from worker.cli.bulk import dead_change
from worker.cli.support import json_option, show, with_queue
from worker.errors import NotFound
from worker.queue.letters import DeadLetter

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(value: str) -> datetime:
    """Parse `2026-01-31T12:00:00+00:00` (UTC if it has no zone), or a time ago: `15m`, `2h`, `7d`."""
    ago = re.fullmatch(r"(\d{1,6})([smhd])", value)
    if ago:
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        accepted = "15m, 2h, 7d or an ISO 8601 time"
        raise click.BadParameter(f"{value!r} is not a time; accepted: {accepted}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@click.group()
def dead() -> None:
    """List, retry and purge dead letters: jobs that failed for good."""


@dead.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="Letters at most.",
)
@json_option
def dead_list(limit: int, as_json: bool) -> None:
    """List the newest dead letters, newest first.

    \b
    Examples:
      letta-workers dead list
      letta-workers dead list --limit 1000 --json
    """
    letters = with_queue(lambda queue: queue.dead.list(limit=limit))
    show(
        [_row(letter) for letter in letters],
        as_json,
        lambda: [_line(letter) for letter in letters] or ["no dead letters"],
    )


def _row(letter: DeadLetter) -> dict[str, Any]:
    # The body may hold secrets, so only its size is shown.
    return {
        "id": letter.id,
        "name": letter.name,
        "reason": letter.reason,
        "error": letter.error,
        "tries": letter.tries,
        "priority": letter.priority,
        "died_at": letter.died_at.isoformat(),
        "body_bytes": len(letter.body),
    }


def _line(letter: DeadLetter) -> str:
    at = letter.died_at.isoformat(timespec="seconds")
    return (
        f"{at}  {letter.id}  {letter.name}  {letter.reason}  tries={letter.tries}  {letter.error}"
    )


@dead.command("retry")
@click.argument("job_id", required=False)
@click.option("--since", type=moment, help="All that died since: 15m, 2h, 7d or ISO 8601.")
@json_option
def dead_retry(job_id: str | None, since: datetime | None, as_json: bool) -> None:
    """Enqueue one dead letter again, or all that died since a time.

    \b
    Examples:
      letta-workers dead retry 5f0c6a...
      letta-workers dead retry --since 2h
    """
    _require_one(job_id, since, "--since")
    done = with_queue(lambda queue: queue.dead.retry(job_id, since=since))
    _report("retried", done, job_id, as_json)


@dead.command("purge")
@click.argument("job_id", required=False)
@click.option("--before", type=moment, help="All that died before: 15m, 2h, 7d or ISO 8601.")
@json_option
def dead_purge(job_id: str | None, before: datetime | None, as_json: bool) -> None:
    """Delete one dead letter, or all that died before a time.

    \b
    Examples:
      letta-workers dead purge 5f0c6a...
      letta-workers dead purge --before 7d
    """
    _require_one(job_id, before, "--before")
    done = with_queue(lambda queue: queue.dead.purge(job_id, before=before))
    _report("purged", done, job_id, as_json)


def _require_one(job_id: str | None, at: datetime | None, option: str) -> None:
    if (job_id is None) == (at is None):
        raise click.UsageError(f"give either a job id or {option}")


def _report(what: str, done: int, job_id: str | None, as_json: bool) -> None:
    if job_id is not None and not done:
        raise NotFound(f"no dead letter {job_id!r}, or a job with this id waits or runs")
    show({what: done}, as_json, lambda: [f"{done} {what}"])


dead.add_command(dead_change)
