"""
Composition root: builds everything from the settings, once, and hands it out.

`build_worker_settings` is what `arq worker.WorkerSettings` loads; `letta-workers
run` starts the same class in each of its processes. What a worker runs stands in
functions.py, what it is built of in building.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from arq.connections import ArqRedis
from arq.jobs import Job

from cache.connection import embedded
from cache.connection.pool import build_client, open_pool, parse_url, wait_until_ready
from cache.connection.shared_scripts import SharedScripts
from cache.encoding import codec
from settings import Settings, get_settings
from worker.app import building
from worker.app.functions import build_crons, build_functions
from worker.app.wiring import pool_options
from worker.deps import Deps
from worker.engine import new_worker_id
from worker.engine.bridge import ManagedEngine, settings_class, worker_from
from worker.keys import QueueKeys
from worker.logs import configure_logging
from worker.process.child import ManagedWorker, serve
from worker.queue import arguments

log = structlog.get_logger(__name__)

_HEALTH_INTERVAL_S = 5


class WorkerRedis(SharedScripts, ArqRedis):
    """arq's client, its scripts on one connection; jobs enqueue others with it (`ctx["redis"]`)."""

    async def enqueue_job(
        self, function: str, *args: Any, _job_id: str | None = None, **kwargs: Any
    ) -> Job | None:
        """
        arq's own, for ids that do not take the place of our jobs.

        Raises:
            InvalidArgument: `_job_id` begins as ours do, or is no name.
        """
        arguments.require_name("function", function)
        if _job_id is not None:
            arguments.require_name("_job_id", _job_id)
            arguments.require_not_our_job("_job_id", _job_id)
        return await super().enqueue_job(function, *args, _job_id=_job_id, **kwargs)


def build_worker_settings(settings: Settings | None = None) -> type:
    """
    The class that arq reads. Every attribute is the class's own: arq ignores inherited ones.

    An embedded:// server starts here, and ends with this process.

    Raises:
        settings.SettingsError: a setting is wrong, or names a function that does not load.
    """
    chosen = settings or get_settings()
    url = chosen.redis_url
    if parse_url(url).kind == "embedded":
        url = embedded.acquire(url)
    client = build_client(
        url,
        pool_options(chosen),
        name="letta-redis-worker",
        client_class=WorkerRedis,
        job_serializer=codec.encode,
        job_deserializer=codec.decode,
    )
    keys = QueueKeys()
    worker_id = new_worker_id()
    attributes = {
        "functions": build_functions(chosen),
        "cron_jobs": build_crons(chosen),
        "queue_name": keys.queue(),
        "redis_pool": client,
        # `arq --check` builds a client of its own, from this.
        "redis_settings": building.arq_redis_settings(parse_url(url), chosen),
        "health_check_interval": _HEALTH_INTERVAL_S,
        "health_check_key": keys.health,
        "job_serializer": codec.encode,
        "job_deserializer": codec.decode,
        "max_jobs": chosen.worker_max_jobs,
        "job_timeout": chosen.worker_job_timeout_s,
        "job_completion_wait": int(chosen.worker_shutdown_grace_s),
        "keep_result": chosen.worker_keep_result_s,
        "allow_abort_jobs": True,
        "log_results": False,
        "on_startup": _startup(chosen),
        "on_shutdown": _shutdown,
    }
    return settings_class(
        attributes, engine={"options": building.engine_options(chosen), "worker_id": worker_id}
    )


def _startup(settings: Settings) -> Callable[[dict[Any, Any]], Any]:
    async def startup(ctx: dict[Any, Any]) -> None:
        configure_logging(settings.worker_log_level, settings.worker_log_format)
        deps = building.build_deps(settings, ctx["redis"])
        deps.put_into(ctx)
        log.info("worker.started", worker_id=ctx["worker_id"], max_jobs=settings.worker_max_jobs)

    return startup


async def _shutdown(ctx: dict[Any, Any]) -> None:
    deps = Deps.find(ctx)
    if deps is None:  # ended before the server was ever reached
        return
    await deps.http.aclose()
    await deps.llm_http.aclose()
    await deps.queue.aclose()
    log.info("worker.stopped", worker_id=ctx["worker_id"])


def build_worker(settings: Settings, foreign: type | None = None) -> ManagedWorker:
    """
    A worker to `run()` on the running event loop; what it needs is built with it.

    `foreign` is anybody's arq settings class; it names its own server.
    """
    found = foreign or build_worker_settings(settings)
    return ManagedEngine(worker_from(found, handle_signals=False))


def run_child(settings: Settings, foreign: type | None = None) -> int:
    """One worker process; returns its exit code (worker/process/child.py)."""
    configure_logging(settings.worker_log_level, settings.worker_log_format)

    async def run() -> int:
        worker = build_worker(settings, foreign)
        return await serve(worker, building.child_options(settings))

    return asyncio.run(run())


def await_server(settings: Settings, *, once: bool) -> None:
    """
    Return when the queue's server answers; `once` looks a single time.

    For arq's own command, which meets an absent server with a traceback.

    Raises:
        cache.errors.RedisUnavailable: it does not answer (`once` only).
    """
    configure_logging(settings.worker_log_level, settings.worker_log_format)

    async def look() -> None:
        options = pool_options(settings)
        async with open_pool(settings.redis_url, options, name="letta-redis-start") as client:
            await wait_until_ready(client, settings.redis_url, deadline_s=0 if once else None)

    # A loop of its own: asyncio.run would leave arq without a current one.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(look())
    finally:
        loop.close()
