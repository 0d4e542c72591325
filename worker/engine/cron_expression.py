"""Cron expressions for arq: five fields, or six with seconds first; times are UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from arq.cron import CronJob
from arq.typing import WorkerCoroutine
from cronsim import CronSim, CronSimError


@dataclass
class CronExpression(CronJob):
    """A cron job whose ticks come from an expression instead of arq's sets."""

    expression: str = "* * * * *"

    def calculate_next(self, prev_run: datetime) -> None:
        self.next_run = next(CronSim(self.expression, prev_run.astimezone(UTC)))


def cron_job(coroutine: WorkerCoroutine, name: str, expression: str) -> CronExpression:
    """
    A job that runs at every tick of the expression, once for all workers.

    Raises:
        ValueError: the expression is wrong; the message says which field.
    """
    try:
        CronSim(expression, datetime.now(UTC))
    except CronSimError as exc:
        raise ValueError(f"{expression!r}: {exc}") from None
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
    )
