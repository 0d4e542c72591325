"""
Exports the queue's client (`open_queue`), its errors, and `WorkerSettings` for arq's command.

Each name is loaded at its first use, and `WorkerSettings` is built then. Importing
this package therefore takes no time, needs no arq and reads no environment.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from settings import Settings
    from worker.client import JobQueue
    from worker.errors import (
        EnqueueRefused,
        InvalidArgument,
        InvalidWebhookURL,
        JobAborted,
        JobFailed,
        NotConfirmed,
        NotFound,
        NotSerializable,
        PayloadTooLarge,
        Permanent,
        QueueDisabled,
        QueueFull,
        QueueMemoryFull,
        QueueUnavailable,
        RequestFailed,
        ResultTimeout,
        Transient,
        UnknownProvider,
        WorkerError,
    )
    from worker.queue.calls import Call, Unique, call
    from worker.queue.job import Job
    from worker.queue.priority import Priority
    from worker.queue.store import JobStatus

    WorkerSettings: type

__all__ = [
    "Call",
    "EnqueueRefused",
    "InvalidArgument",
    "InvalidWebhookURL",
    "Job",
    "JobAborted",
    "JobFailed",
    "JobQueue",
    "JobStatus",
    "NotConfirmed",
    "NotFound",
    "NotSerializable",
    "PayloadTooLarge",
    "Permanent",
    "Priority",
    "QueueDisabled",
    "QueueFull",
    "QueueMemoryFull",
    "QueueUnavailable",
    "RequestFailed",
    "ResultTimeout",
    "Transient",
    "Unique",
    "UnknownProvider",
    "WorkerError",
    "WorkerSettings",
    "call",
    "open_queue",
]

# Where the names are, the cheapest import first.
_HOMES = ("errors", "queue.priority", "queue.calls", "queue.store", "queue.job", "client")


@asynccontextmanager
async def open_queue(settings: Settings | None = None) -> AsyncIterator[JobQueue]:
    """
    Open the queue's client for the given settings, or for `get_settings()`.

    The first call connects, and raises QueueUnavailable if the server cannot be
    reached. While LETTA_USE_REDIS_QUEUE is off, every call raises QueueDisabled.

    Raises:
        settings.SettingsError: a setting is wrong.
        cache.errors.UnsupportedRedisURL: the URL has an unknown form.
    """
    from cache.connection.pool import open_pool
    from cache.connection.shared_scripts import ScriptRedis
    from settings import get_settings
    from worker.app.composition import build_queue, build_stores
    from worker.app.options import pool_options, queue_options
    from worker.client import disabled_queue
    from worker.keys import QUEUE_TAG

    chosen = settings or get_settings()
    if not chosen.use_redis_queue:
        yield disabled_queue()
        return
    options = queue_options(chosen)
    async with open_pool(
        chosen.redis_url,
        pool_options(chosen),
        name="letta-redis-queue",
        client_class=ScriptRedis,
        tag=QUEUE_TAG,
    ) as client:
        queue = build_queue(build_stores(client, options), options)
        try:
            yield queue
        finally:
            await queue.aclose()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = _worker_settings() if name == "WorkerSettings" else _load(name)
    return found


def _load(name: str) -> Any:
    for home in _HOMES:
        module = import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _worker_settings() -> type:
    from cache.errors import CacheError, RedisUnavailable
    from settings import SettingsError, get_settings
    from worker.app.functions import build_functions, warn_about_unknown_jobs
    from worker.app.service import await_server, build_worker_settings
    from worker.errors import UnsafeServer
    from worker.terminal import printable_lines

    check = "--check" in sys.argv
    try:
        if _is_arq_command():
            await_server(get_settings(), once=check)
            warn_about_unknown_jobs(get_settings(), build_functions(get_settings()))
        return build_worker_settings()
    except (SettingsError, CacheError, UnsafeServer) as exc:
        # arq's command line would print a traceback; the operator needs this one line.
        print(printable_lines(str(exc)), file=sys.stderr)  # noqa: T201
        is_unhealthy = check and isinstance(exc, RedisUnavailable)
        raise SystemExit(1 if is_unhealthy else 2) from None


def _is_arq_command() -> bool:
    """Return whether this process was started as `arq ...` or `python -m arq ...`."""
    return "arq" in sys.argv[0].split("/")[-2:]
