"""Cron expressions for arq: five fields, or six with seconds first; times are UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from arq.cron import CronJob
from arq.typing import WorkerCoroutine

from worker.queue.rhythm import next_tick


@dataclass
class CronExpression(CronJob):
    """
    A cron job whose ticks come from an expression instead of arq's sets.

    quiet: log its ticks and its runs that succeed at the level debug, for housekeeping.
    """

    expression: str = "* * * * *"
    quiet: bool = False

    def calculate_next(self, prev_run: datetime) -> None:
        self.next_run = next_tick(self.expression, prev_run)


def cron_job(
    coroutine: WorkerCoroutine, name: str, expression: str, *, quiet: bool = False
) -> CronExpression:
    """
    A job that runs at every tick of the expression, once for all workers.

    Raises:
        InvalidArgument: the expression is wrong, or never due; the message says why.
    """
    next_tick(expression, datetime.now(UTC))
    unset: Any = None
    return CronExpression(
        name=name,
        coroutine=coroutine,
        month=unset,
        day=unset,
        weekday=unset,
        hour=unset,
        minute=unset,
        second=unset,
        microsecond=unset,
        run_at_startup=False,
        unique=True,
        job_id=None,
        timeout_s=None,
        keep_result_s=None,
        keep_result_forever=None,
        max_tries=None,
        expression=expression,
        quiet=quiet,
    )
