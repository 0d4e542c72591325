"""Implements `letta-workers` and its top-level commands: run, demo."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import click

from cache.connection import embedded
from cache.connection.urls import parse_url
from cache.errors import CacheError
from settings import Settings, SettingsError, load_settings, read_settings
from worker.cli.batches import batches
from worker.cli.cache import cache
from worker.cli.completion import completion
from worker.cli.dead import dead
from worker.cli.endpoints import webhooks_endpoints
from worker.cli.health import health
from worker.cli.jobs import jobs, workers
from worker.cli.metrics import metrics
from worker.cli.pauses import pause, resume
from worker.cli.schedules import schedules
from worker.cli.status import status
from worker.cli.support import EXIT_USAGE, Commands, json_option
from worker.cli.web import beside_run, web
from worker.cli.webhooks import webhooks
from worker.terminal import printable_lines


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("letta-redis"), prog_name="letta-workers")
def main() -> None:
    """Workers, webhooks and LLM batches for the Letta server, on Redis or Valkey.

    Settings come from LETTA_... variables, .env and secrets files: docs/settings.md.
    """
    from worker.logs import configure_logging

    # Standard output carries only the command's result; logs go to standard error.
    configure_logging("INFO", "auto")


main.add_command(batches)
main.add_command(cache)
main.add_command(completion)
main.add_command(dead)
main.add_command(webhooks_endpoints)
main.add_command(health)

settings_option = click.option(
    "--settings", "foreign", metavar="PACKAGE.MODULE.CLASS", help="Run this arq settings class."
)


@main.command()
@click.option(
    "--count", type=click.IntRange(1, 256), help="Number of processes; default: LETTA_WORKER_COUNT."
)
@settings_option
def run(count: int | None, foreign: str | None) -> None:
    """Run the workers and keep them running.

    TERM or Ctrl-C drains: running jobs may finish within LETTA_WORKER_SHUTDOWN_GRACE_S, the others
    are given back to the queue. A second signal stops at once. Exit codes: 0 drained, 1 crash
    loop, 2 wrong setting, 3 forced.

    \b
    Examples:
      LETTA_REDIS_URL=redis://localhost:6379/0 letta-workers run
      letta-workers run --count 1          # one process a pod
      letta-workers run --settings myapp.jobs.WorkerSettings   # any arq settings class
    """
    from worker.app.supervision import supervisor_options
    from worker.logs import configure_logging
    from worker.process.aside import run_aside
    from worker.process.supervisor import run_supervisor

    settings = load_settings()
    configure_logging(settings.worker_log_level, settings.worker_log_format)
    beside = beside_run(settings)
    # Load everything first, so that an error is reported once and not by every child.
    code = run_aside(lambda: _check_functions(settings, foreign))
    if code:
        raise SystemExit(code)
    # -P: a module in the working directory must not shadow ours or the standard library's.
    command = [sys.executable, "-P", "-m", "letta_redis.worker", "child"]
    if foreign is not None:
        command += ["--settings", foreign]
    with _server_for_children(settings), beside:
        processes = count or settings.worker_count
        code = run_supervisor(command, processes, supervisor_options(settings))
    raise SystemExit(int(code))


def _check_functions(settings: Settings, foreign: str | None) -> int:
    from worker.app.functions import (
        build_crons,
        build_functions,
        load_settings_class,
        warn_about_class,
        warn_about_unknown_jobs,
    )

    try:
        if foreign is not None:
            warn_about_class(settings, load_settings_class(foreign))
        else:
            warn_about_unknown_jobs(settings, build_functions(settings))
            build_crons(settings)
    except SettingsError as exc:
        click.echo(printable_lines(str(exc)), err=True)
        return EXIT_USAGE
    return 0


class _server_for_children:  # noqa: N801  (a context manager, read like a function)
    """Runs an embedded server in the parent and gives the children its socket's URL."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url if parse_url(settings.redis_url).kind == "embedded" else None

    def __enter__(self) -> None:
        if self._url is not None:
            os.environ["LETTA_REDIS_URL"] = embedded.acquire(self._url)

    def __exit__(self, *_exc: object) -> None:
        if self._url is not None:
            embedded.release(self._url)


@main.command(hidden=True)
@settings_option
def child(foreign: str | None) -> None:
    """Fork worker processes for the supervisor, which starts this command, or run one alone."""
    from worker.imports import import_lightly

    import_lightly("httpx")
    from worker.app.functions import load_settings_class
    from worker.app.service import run_child
    from worker.errors import BadCron
    from worker.process.child import report_bad_configuration
    from worker.process.fork_server import fork_on_request

    fork_on_request()
    try:
        code = run_child(read_settings(), load_settings_class(foreign) if foreign else None)
    except (SettingsError, BadCron, CacheError) as exc:
        code = report_bad_configuration(str(exc))
    raise SystemExit(int(code))


@main.command()
@json_option
@click.option(
    "--webhooks",
    type=click.IntRange(1, 100_000),
    help="Webhooks to send.",
    default=200,
    show_default=True,
)
@click.option(
    "--requests",
    type=click.IntRange(1, 100_000),
    help="LLM requests to submit.",
    default=100,
    show_default=True,
)
@click.option("--keep", is_flag=True, help="Leave it running until Ctrl-C, for a look at the page.")
def demo(as_json: bool, webhooks: int, requests: int, keep: bool) -> None:
    """Run webhooks and LLM requests end to end on an embedded Valkey, and print a report.

    Starts everything it needs on loopback and stops it again: a Valkey server, LETTA_WORKER_COUNT
    workers, the operators' page, a webhook receiver that fails at first, and an OpenAI-compatible
    server. Exits 1 if an acknowledged delivery or request is missing.

    \b
    Examples:
      letta-workers demo
      letta-workers demo --keep
      LETTA_WORKER_COUNT=2 letta-workers demo --webhooks 1000 --json
    """
    from worker.demo.run import run_demo

    raise SystemExit(run_demo(webhooks=webhooks, requests=requests, as_json=as_json, keep=keep))


main.add_command(webhooks)
main.add_command(jobs)
main.add_command(metrics)
main.add_command(pause)
main.add_command(resume)
main.add_command(schedules)
main.add_command(status)
main.add_command(workers)
main.add_command(web)
