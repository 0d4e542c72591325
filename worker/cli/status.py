"""Implements `letta-workers status`: counts by priority, once or until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from settings import read_settings
from worker.cli.support import json_option, show, with_queue
from worker.client import JobQueue
from worker.errors import QueueUnavailable
from worker.terminal import printable

_COLUMNS = ("queued", "deferred", "running", "paused", "parked", "dead", "oldest_age_s")

# Counts by priority; with LETTA_QUEUE_WAIT_REPLICAS those of `replicas`, too.
Counts = dict[str, dict[str, float]]


@click.command()
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C; on a terminal in place.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two readings of --watch.",
)
@json_option
def status(*, watch: bool, every_s: float, as_json: bool) -> None:
    """Show how many jobs of each priority are queued, deferred, running, paused, parked and dead.

    With --watch, a reading that fails is said, and the next one is tried. With --json as well, each
    reading is one line: {"at", "counts"}, or {"at", "error"}.

    \b
    Examples:
      letta-workers status
      letta-workers status --watch --every 5
      letta-workers status --json | jq .default.oldest_age_s
    """
    wanted = read_settings().queue_wait_replicas
    if not watch:
        counts = with_queue(lambda queue: _read(queue, wanted))
        show(counts, as_json, lambda: _lines(counts))
        return
    with _screen(as_json) as tell:
        with_queue(lambda queue: _watch(queue, wanted, every_s, tell))


async def _read(queue: JobQueue, wanted: int) -> Counts:
    online = (await queue.jobs.overview()).replicas if wanted else 0
    counts = await queue.stats()
    if wanted:
        counts["replicas"] = {"online": online, "wanted": wanted}
    return counts


async def _watch(
    queue: JobQueue, wanted: int, every_s: float, tell: Callable[[Counts | QueueUnavailable], None]
) -> None:
    while True:
        try:
            found: Counts | QueueUnavailable = await _read(queue, wanted)
        except QueueUnavailable as exc:
            found = exc
        tell(found)
        await asyncio.sleep(every_s)


@contextmanager
def _screen(as_json: bool) -> Iterator[Callable[[Counts | QueueUnavailable], None]]:
    """What shows a reading: a line of JSON, a few lines, or a place of the terminal."""
    if as_json:
        yield _tell_json
    elif not sys.stdout.isatty():
        yield lambda found: click.echo("\n".join(_told(found)) + "\n")
    else:
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False) as live:
            yield lambda found: live.update(Text("\n".join(_told(found))), refresh=True)


def _tell_json(found: Counts | QueueUnavailable) -> None:
    line: dict[str, Any] = {"at": _now()}
    if isinstance(found, QueueUnavailable):
        line["error"] = {"kind": type(found).__name__, "message": str(found)}
    else:
        line["counts"] = found
    click.echo(json.dumps(line))


def _told(found: Counts | QueueUnavailable) -> list[str]:
    rows = [f"error: {found}"] if isinstance(found, QueueUnavailable) else _lines(found)
    return [_now(), *map(printable, rows)]


def _lines(counts: Counts) -> list[str]:
    rows = [f"{'priority':<10}" + "".join(f"{name:>14}" for name in _COLUMNS)]
    rows += [
        f"{priority:<10}" + "".join(f"{row[name]:>14}" for name in _COLUMNS)
        for priority, row in counts.items()
        if priority != "replicas"
    ]
    if "replicas" in counts:
        online, wanted = counts["replicas"]["online"], counts["replicas"]["wanted"]
        mode = "enqueues are confirmed" if online >= wanted else "enqueues return unconfirmed"
        rows.append(f"replicas: {online} online, LETTA_QUEUE_WAIT_REPLICAS={wanted}: {mode}")
    return rows


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
