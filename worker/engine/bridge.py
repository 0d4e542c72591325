"""
Runs the engine under the plain `arq` command, and any arq settings class on the engine.

`arq package.module.Class` always builds arq's own Worker from the class's
`__dict__`. `settings_class` makes a class whose `on_startup` builds our Worker on
the same connections and runs it to its end; arq's worker never takes a job.
arq's first signal cancels that startup, which drains the engine; a second one
gives all running jobs back at once.
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
# Hidden from arq's own worker, which would act on them beside the engine.
_OURS_ALONE = frozenset(
    {"cron_jobs", "burst", "on_job_start", "on_job_end", "after_job_end", "ctx", "on_startup"}
)


def worker_from(settings_class_: type | Mapping[str, Any], **overrides: Any) -> Worker:
    """
    Build our worker from any arq settings class. As in arq, inherited attributes are ignored.

    `overrides` are arguments of `worker.engine.Worker`.
    """
    source = settings_class_ if isinstance(settings_class_, Mapping) else vars(settings_class_)
    build = source.get("build_engine")
    if build is not None:
        # `vars(class)` holds a static method still wrapped.
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
    Make the class that `arq` loads.

    `arguments` are arq's; `engine` holds the arguments that only our worker takes.
    The class's `build_engine(**overrides)` builds our worker without arq's around it.
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
            # arq's worker calls it when it closes.
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
    """Adapts a worker to `worker.process.child.ManagedWorker`."""

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
    """Placeholder: arq requires a function, though its worker never takes a job."""


def _run_inside(build: Callable[[dict[Any, Any]], Worker]) -> Callable[[dict[Any, Any]], Any]:
    async def on_startup(ctx: dict[Any, Any]) -> None:
        await build(ctx).main()
        # arq's worker takes this for a shutdown and ends too.
        raise asyncio.CancelledError

    return on_startup


def _is_burst(*, default: bool) -> bool:
    """Whether `arq --burst` runs us; arq passes the flag to its own worker only."""
    context = click.get_current_context(silent=True)
    given = None if context is None else context.params.get("burst")
    return default if given is None else bool(given)
