"""
The engine under plain `arq package.module.Class`, and anybody's arq settings on the engine.

arq's command builds its own Worker from the class's `__dict__` and knows no
other. `settings_class` gives it one whose `on_startup` builds ours on the same
connections and runs it to its end; arq's worker itself never takes a job. Its
signals cancel that startup, which drains the engine; a second one gives
everything back at once.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import click
from arq.worker import Worker as ArqWorker

from worker.engine.worker import Worker

_ACCEPTED = frozenset(inspect.signature(ArqWorker).parameters)
# What arq's own worker must not see: it would act on it beside the engine.
_OURS_ALONE = frozenset(
    {"cron_jobs", "burst", "on_job_start", "on_job_end", "after_job_end", "ctx", "on_startup"}
)


def worker_from(settings_class_: type | Mapping[str, Any], **overrides: Any) -> Worker:
    """
    A worker of ours for anybody's arq settings class; only its own attributes count, as in arq.

    `overrides` are arguments of `worker.engine.Worker`.
    """
    source = settings_class_ if isinstance(settings_class_, Mapping) else vars(settings_class_)
    build = source.get("build_engine")
    if build is not None:
        # In a class's own attributes a static method is still wrapped.
        function: Callable[..., Worker] = cast(
            "Callable[..., Worker]", getattr(build, "__func__", build)
        )
        return function(**overrides)
    named = {key: value for key, value in source.items() if key in _ACCEPTED}
    return Worker(**{**named, **overrides})


def settings_class(
    arguments: Mapping[str, Any], *, engine: Mapping[str, Any] | None = None
) -> type:
    """
    The class for `arq` to load: `arguments` are arq's, `engine` those that only ours takes.

    Its `build_engine(**overrides)` gives the worker without arq's in front.
    """
    extra = dict(engine or {})

    def build_engine(**overrides: Any) -> Worker:
        return Worker(**{**arguments, **extra, **overrides})

    def build_inside(ctx: dict[Any, Any]) -> Worker:
        return build_engine(
            ctx=ctx,
            redis_pool=ctx["redis"],
            handle_signals=False,
            burst=_is_burst(default=bool(arguments.get("burst"))),
            # Shared with arq's worker, which calls it when it closes.
            on_shutdown=None,
        )

    attributes = {k: v for k, v in arguments.items() if k not in _OURS_ALONE}
    attributes |= {
        "functions": [_never],
        "on_startup": _run_inside(build_inside),
        "job_completion_wait": 0,
        "build_engine": staticmethod(build_engine),
    }
    return type("WorkerSettings", (), attributes)


class ManagedEngine:
    """A worker as `worker.process.child` runs one."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @property
    def jobs_done(self) -> int:
        return self.worker.jobs_done

    async def run(self) -> None:
        """Work until drained, then close."""
        try:
            await self.worker.main()
        finally:
            await self.worker.close()

    def drain(self) -> None:
        self.worker.drain()

    def quiet(self) -> None:
        self.worker.quiet()

    def force(self) -> None:
        self.worker.force()


async def _never(_ctx: dict[Any, Any]) -> None:
    """arq asks for a function; its worker never takes a job."""


def _run_inside(build: Callable[[dict[Any, Any]], Worker]) -> Callable[[dict[Any, Any]], Any]:
    async def on_startup(ctx: dict[Any, Any]) -> None:
        await build(ctx).main()
        # The end of the engine is the end of arq's worker: it takes this for a shutdown.
        raise asyncio.CancelledError

    return on_startup


def _is_burst(*, default: bool) -> bool:
    """Whether `arq --burst` runs us: arq tells only its own worker."""
    context = click.get_current_context(silent=True)
    given = None if context is None else context.params.get("burst")
    return default if given is None else bool(given)
