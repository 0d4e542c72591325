"""Composes the components of one `main()` from a worker's arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from arq.connections import ArqRedis, create_pool

from cache.connection.pool import CONNECT_ANEW
from cache.connection.shared_scripts import ScriptRedis, SharedScripts
from cache.encoding import codec
from worker.engine.cron import CronRunner
from worker.engine.execute import Executor
from worker.engine.heartbeat import Heartbeat
from worker.engine.leases import LeaseKeeper
from worker.engine.poll import Poll
from worker.engine.poller import Poller
from worker.engine.schedules import ScheduleRunner
from worker.engine.settings import RunSettings
from worker.engine.slots import Slots
from worker.engine.state import WorkerState
from worker.engine.wake import Waker

_SOCKET_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Run:
    """The components of one `main()`. A worker may run several times, one after the other."""

    scripts: Any
    poll: Poll
    slots: Slots
    poller: Poller
    waker: Waker
    executor: Executor
    heartbeat: Heartbeat
    crons: CronRunner
    leases: LeaseKeeper
    over: asyncio.Event = field(default_factory=asyncio.Event)
    leave_by: float = float("inf")


async def connect(worker: WorkerState) -> ArqRedis:
    """Open the pool that the worker's `redis_settings` describe."""
    pool = await create_pool(
        worker.redis_settings,
        job_deserializer=worker.job_deserializer,
        job_serializer=worker.job_serializer,
        default_queue_name=worker.queue_name,
        expires_extra_ms=worker.expires_extra_ms,
    )
    # arq's settings have no reply timeout, so a hung server would block the worker forever.
    options = pool.connection_pool.connection_kwargs
    options["socket_timeout"] = options.get("socket_timeout") or _SOCKET_TIMEOUT_S
    options["retry_on_error"] = [*(options.get("retry_on_error") or ()), *CONNECT_ANEW]
    if "path" not in options:  # a Unix socket has no keepalive option
        options["socket_keepalive"] = True
    await pool.connection_pool.disconnect()
    return pool


def assemble(worker: WorkerState, *, report: Callable[[], dict[str, Any]]) -> Run:
    """Build the components for a `main()` that starts now."""
    client, keys, options = worker.pool, worker.keys, worker.options
    # arq's client takes a pooled connection for each call; scripts share one.
    is_shared = isinstance(client, SharedScripts)
    scripts = client if is_shared else ScriptRedis(connection_pool=client.connection_pool)
    slots = Slots(
        worker.max_jobs,
        worker.claims,
        (worker.tasks, worker.job_tasks),
        most_stalled=options.max_lost_leases,
    )
    executor = Executor(
        _settings(worker),
        now_ms=worker.server_ms,
        collect=slots.collect,
        note=slots.note,
        vacate=slots.vacate,
    )
    slots.run_with(executor)
    poll = Poll(scripts, keys, options, worker_id=worker.worker_id)
    waker = Waker(
        client,
        keys,
        poll,
        claims=not worker.burst,  # a burst must count the jobs it claims
        kick=slots.kick.set,
    )
    encode = worker.job_serializer or codec.encode
    crons = CronRunner(
        client,
        keys,
        worker.cron_jobs,
        encode=encode,
        missed=options.cron_missed,
        now_ms=worker.server_ms,
        timezone=worker.timezone,
    )
    schedules = ScheduleRunner(client, keys, encode=encode, now_ms=worker.server_ms)
    return Run(
        scripts=scripts,
        poll=poll,
        slots=slots,
        poller=Poller(worker, poll, slots, waker, crons=crons, schedules=schedules),
        waker=waker,
        executor=executor,
        heartbeat=Heartbeat(
            client,
            keys,
            options,
            worker_id=worker.worker_id,
            report=report,
            hint=waker.hint,
        ),
        crons=crons,
        leases=LeaseKeeper(
            client, keys, worker.claims, lease_s=options.lease_s, on_lost=slots.lost
        ),
    )


def _settings(worker: WorkerState) -> RunSettings:
    return RunSettings(
        functions=worker.functions,
        ctx=worker.ctx,
        options=worker.options,
        worker_id=worker.worker_id,
        queue_names=worker.keys.queues,
        unique_prefix=worker.keys.base.unique(""),
        serializer=cast(Any, worker.job_serializer),
        deserializer=cast(Any, worker.job_deserializer),
        job_timeout_s=worker.job_timeout_s,
        keep_result_s=worker.keep_result_s or 0,
        keep_result_forever=worker.keep_result_forever,
        max_tries=worker.max_tries,
        retry_jobs=worker.retry_jobs,
        allow_abort_jobs=worker.allow_abort_jobs,
        # A burst does not wait for a deploy that knows the function.
        park_s=0 if worker.burst else worker.options.park_s,
        on_job_start=worker.on_job_start,
        on_job_end=worker.on_job_end,
        after_job_end=worker.after_job_end,
        observer=worker.observer,
    )
