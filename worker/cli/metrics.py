"""Implements `letta-workers metrics`: how jobs ended lately, by function and priority."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from worker.cli.support import json_option, show, with_queue
from worker.cli.webhooks import Moment
from worker.queue.history import FunctionHistory
from worker.queue.priority import Priority
from worker.queue.series import OUTCOMES, Times

_SHARES = (0.5, 0.99)


@click.command()
@click.option("--since", type=Moment(), default="1h", help="15m, 2h, 7d or ISO 8601; default: 1h.")
@click.option("--function", help="Only jobs of this function.")
@click.option(
    "--priority",
    type=click.Choice([priority.value for priority in Priority]),
    help="Only jobs of this priority.",
)
@json_option
def metrics(since: datetime, function: str | None, priority: str | None, as_json: bool) -> None:
    """Show how jobs ended, and how long they ran and waited: up to which time half and 99 % did.

    By whole minutes for the last 24 hours, by whole hours for more, up to 30 days. --json also has
    each minute or hour, and the histograms.

    \b
    Examples:
      letta-workers metrics
      letta-workers metrics --since 7d --function send_mail
      letta-workers metrics --json | jq '.[] | {function, dead: .counts.dead}'
    """
    level = None if priority is None else Priority(priority)
    found: list[FunctionHistory] = with_queue(
        lambda queue: queue.history(function=function, priority=level, since=since)
    )
    found = [series for series in found if series.counts]
    show([asdict(series) for series in found], as_json, lambda: _table(found))


def _table(found: list[FunctionHistory]) -> list[str]:
    if not found:
        return ["no job ended"]
    shares = [f"{share * 100:g}%" for share in _SHARES]
    columns = [*OUTCOMES, *(f"run {share}" for share in shares), *(f"wait {s}" for s in shares)]
    width = max(8, *(len(series.function) for series in found))
    return [
        _line("function", "priority", columns, width),
        *(_line(each.function, each.priority.value, _cells(each), width) for each in found),
    ]


def _line(function: str, priority: str, cells: list[Any], width: int) -> str:
    return f"{function:<{width}}  {priority:<8}" + "".join(f"{cell:>11}" for cell in cells)


def _cells(series: FunctionHistory) -> list[Any]:
    counts = series.counts
    times = [*_quantiles(counts.run), *_quantiles(counts.wait)]
    return [*(getattr(counts, outcome) for outcome in OUTCOMES), *times]


def _quantiles(times: Times) -> list[str]:
    """Upper limits in seconds; "-" without runs, "longer" beyond the last limit."""
    found = [times.quantile_s(share) for share in _SHARES]
    return [
        "-" if limit is None else "longer" if limit == float("inf") else f"<={limit:g} s"
        for limit in found
    ]
