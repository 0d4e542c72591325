"""Prepares functions and cron jobs for a testing queue: plain names and no backoff."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arq.cron import CronJob
    from arq.worker import Function

    from worker.engine import EngineOptions


def named(function: Any) -> Function:
    """Register it by `__name__`; arq would use `test_x.<locals>.send_mail` for a local function."""
    from arq.worker import Function, func

    return function if isinstance(function, Function) else func(function, name=function.__name__)


def plain(cron: CronJob) -> Function:
    """Turn a cron job into a plain function, which keeps its result for the test to read."""
    from arq.worker import Function

    return Function(cron.name, cron.coroutine, cron.timeout_s, None, None, cron.max_tries)


def retrying_at_once(options: EngineOptions) -> EngineOptions:
    retry = options.retry
    return replace(options, retry=None if retry is None else replace(retry, base_s=0.0))


def without_backoff(function: Function) -> Function:
    from arq.worker import Retry

    from worker.engine import JobFunction

    coroutine = function.coroutine

    async def run(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await coroutine(ctx, *args, **kwargs)
        except Retry as exc:
            raise Retry from exc

    quick = replace(function, coroutine=run)
    if isinstance(quick, JobFunction) and quick.retry is not None:
        quick = replace(quick, retry=replace(quick.retry, base_s=0.0))
    return quick
