"""Helpers of all commands: errors as one line or JSON, output, open clients of servers that answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NoReturn

import click
from redis.exceptions import RedisError

from cache.connection.pool import open_pool
from cache.connection.readiness import wait_until_ready
from cache.connection.refusals import explain
from cache.errors import CacheError, MissingExtra, UnsupportedRedisURL
from settings import Settings, SettingsError, load_settings
from worker import open_queue
from worker.app.options import pool_options
from worker.client import JobQueue
from worker.errors import InvalidArgument, WorkerError
from worker.keys import QUEUE_TAG
from worker.terminal import printable, printable_lines

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
# Wrong arguments and settings, which no repetition mends.
_WRONG = (SettingsError, InvalidArgument, UnsupportedRedisURL, MissingExtra)
_JSON = f"{__name__}.json"

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Commands(click.Group):
    """
    Prints our errors as one line on standard error; with --json, as JSON on standard output.

    Exits with 1 (failed), 2 (wrong arguments or setting) or 130 (interrupted).
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except _WRONG as exc:
            _fail(ctx, exc, str(exc), EXIT_USAGE)
        except (WorkerError, CacheError) as exc:
            _fail(ctx, exc, str(exc), EXIT_FAILED)
        except (RedisError, TimeoutError) as exc:
            _fail(ctx, exc, f"the server failed: {explain(exc)}", EXIT_FAILED)
        except click.ClickException as exc:
            if ctx.meta[_JSON]:
                _fail(ctx, exc, exc.format_message(), exc.exit_code)
            vars(exc)["message"] = printable(exc.message)
            raise
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise SystemExit(EXIT_INTERRUPTED) from None


def _fail(ctx: click.Context, exc: Exception, message: str, code: int) -> NoReturn:
    if ctx.meta[_JSON]:
        # Standard error has logs, too: a program reads one stream.
        click.echo(_dump({"error": {"kind": type(exc).__name__, "message": message}}))
    elif isinstance(exc, SettingsError):
        click.echo(printable_lines(message), err=True)
    else:
        click.echo(printable(f"error: {message}"), err=True)
    raise SystemExit(code) from None


def show(data: Any, as_json: bool, lines: Callable[[], list[str]]) -> None:
    """Print data as JSON, or the lines a person reads."""
    text = _dump(data) if as_json else "\n".join(printable(line) for line in lines())
    click.echo(text)


def _dump(data: Any) -> str:
    # JSON escapes all that is not printable ASCII.
    return json.dumps(data, default=str, indent=2)


@asynccontextmanager
async def reached(settings: Settings, url: str, *, tag: str = "") -> AsyncIterator[Any]:
    """
    A client of a server that answers. It gives up within seconds, unlike a service's.

    `tag`: as `pool.build_client`.

    Raises:
        RedisUnavailable: the server cannot be reached, or refuses; the message says why.
    """
    options = replace(pool_options(settings), retries=0)
    async with open_pool(url, options, name="letta-workers", tag=tag) as client:
        await wait_until_ready(client, url, deadline_s=0)
        yield client


def with_queue(work: Callable[[JobQueue], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine with an open queue client and return its result."""

    async def run() -> Any:
        # LETTA_USE_REDIS_QUEUE switches services off; an operator still sees what is queued.
        settings = load_settings(use_redis_queue=True)
        server = reached(settings, settings.redis_url, tag=QUEUE_TAG)
        async with server, open_queue(settings) as queue:
            return await work(queue)

    return asyncio.run(run())
