"""Helpers of all commands: errors as one line, JSON or text output, an open queue client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import click

from cache.errors import CacheError
from settings import SettingsError, load_settings
from worker import open_queue
from worker.client import JobQueue
from worker.errors import WorkerError
from worker.terminal import printable, printable_lines

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Commands(click.Group):
    """Prints our errors as one line and exits with 1 (failed) or 2 (wrong setting or usage)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as exc:
            click.echo(printable_lines(str(exc)), err=True)
            raise SystemExit(EXIT_USAGE) from None
        except (WorkerError, CacheError) as exc:
            click.echo(printable(f"error: {exc}"), err=True)
            raise SystemExit(EXIT_FAILED) from None
        except click.ClickException as exc:
            vars(exc)["message"] = printable_lines(exc.message)
            raise
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise SystemExit(EXIT_INTERRUPTED) from None


def show(data: Any, as_json: bool, lines: Callable[[], list[str]]) -> None:
    """Print data as JSON, or the lines a person reads."""
    if as_json:
        # Its escapes are JSON's own; DEL is the one control character that JSON leaves.
        text = json.dumps(data, default=str, indent=2).replace("\x7f", "\\u007f")
    else:
        text = "\n".join(printable(line) for line in lines())
    click.echo(text)


def with_queue(work: Callable[[JobQueue], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine with an open queue client and return its result."""

    async def run() -> Any:
        # LETTA_USE_REDIS_QUEUE switches services off; an operator still sees what is queued.
        async with open_queue(load_settings(use_redis_queue=True)) as queue:
            return await work(queue)

    return asyncio.run(run())
