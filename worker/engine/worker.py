"""
The engine: `arq.worker.Worker`'s arguments and meaning, on claims, leases and one pump.

Each turn of the pump ends the jobs that are over and claims what is due
(pump.py, lua/pump.lua); a thread renews the leases (leases.py); a token or a
change of the queue wakes it (wake.py). docs/states.md draws a job's states,
docs/arq.md says where this differs from arq and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import structlog
from arq.connections import ArqRedis, create_pool
from arq.constants import default_queue_name
from arq.utils import timestamp_ms
from arq.worker import Worker as ArqWorker

from cache import codec
from cache.keys import QUEUE_PREFIX, QueueKeys
from cache.pool import CONNECT_ANEW, OUTAGE, close_client, wait_until_ready
from worker.engine import guard, poison
from worker.engine.beat import Heart
from worker.engine.cron import CronRunner
from worker.engine.execute import Executor, Observer, Settings, given_back, interrupt
from worker.engine.leases import LeaseKeeper
from worker.engine.options import EngineOptions
from worker.engine.pump import MOST_ENDS, Pump, PumpStopped
from worker.engine.records import Claim, End, EngineKeys, Turn
from worker.engine.tasks import end
from worker.engine.wake import Waker

log = structlog.get_logger("worker.engine")

# After the grace: cancelled jobs have this long to clean up, then the server to hear of it.
_CLEANUP_S = 2.0
_LAST_WORD_S = 5.0
_SOCKET_TIMEOUT_S = 5.0


def new_worker_id() -> str:
    """Unique among workers, and readable: host, process, and digits for a reused pid."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


@dataclass(slots=True)
class _Run:
    """What one `main()` has; a worker may run several times, one after the other."""

    pump: Pump
    waker: Waker
    executor: Executor
    heart: Heart
    crons: CronRunner
    leases: LeaseKeeper
    outbox: list[tuple[Claim, End, str]] = field(default_factory=list)
    kick: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    side_tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    started: int = 0
    sending: bool = False
    suspect: Claim | None = None  # one at a time: it alone pays when this worker dies
    leave_by: float = float("inf")


class Worker(ArqWorker):
    """
    Runs jobs. Takes every argument of `arq.worker.Worker`, and:

    options: `EngineOptions`; without a retry policy arq's rules for exceptions stand.
    prefix: what all keys begin with; stock clients only know `arq:`.
    worker_id: this worker's name in claims, heartbeats and logs.
    observer: told of each run's end.

    `job_completion_wait` is the grace of a drain, in seconds. Without
    serializers jobs and results are msgpack (`cache.codec`), never pickle.

    Raises:
        worker.errors.UnsafeServer: from `main`, when the server may evict jobs.
    """

    def __init__(
        self,
        *args: Any,
        options: EngineOptions | None = None,
        prefix: str = QUEUE_PREFIX,
        worker_id: str | None = None,
        observer: Observer | None = None,
        **kwargs: Any,
    ) -> None:
        if prefix != QUEUE_PREFIX and kwargs.get("queue_name") in (None, default_queue_name):
            kwargs["queue_name"] = QueueKeys(prefix).queue()
        kwargs["job_serializer"] = kwargs.get("job_serializer") or codec.encode
        kwargs["job_deserializer"] = kwargs.get("job_deserializer") or codec.decode
        super().__init__(*args, **kwargs)
        self.options = options or EngineOptions()
        self.worker_id = worker_id or new_worker_id()
        self.keys = EngineKeys(QueueKeys(prefix), self.queue_name)
        self.observer = observer
        self.jobs_given_back = 0
        self.jobs_dead = 0
        self.jobs_rescued = 0
        self.claims: dict[bytes, Claim] = {}
        self._run: _Run | None = None
        self._draining = False
        self._forced = False
        self._started_up = False
        self._asked_to_end = asyncio.Event()
        self._clock_offset_s = 0.0

    # -- what others read and call ----------------------------------------------

    @property
    def jobs_done(self) -> int:
        """Runs of jobs that ended since the start, however they ended."""
        return self.jobs_complete + self.jobs_failed + self.jobs_retried

    @property
    def is_connected(self) -> bool:
        return self._run is not None and self._run.pump.is_connected

    @property
    def has_unsent_ends(self) -> bool:
        """Whether jobs have ended that the server has not been told of."""
        return self._run is not None and bool(self._run.outbox or self._run.sending)

    @property
    def is_draining(self) -> bool:
        return self._draining

    def quiet(self) -> None:
        """Stop claiming; go on with what runs."""
        self.allow_pick_jobs = False
        self._kick()

    def drain(self) -> None:
        """Stop claiming; running jobs get the grace, then are given back uncharged; `main` returns."""
        if self._draining:
            return
        self._draining = True
        self._asked_to_end.set()
        self.quiet()
        log.info("worker.draining", running=len(self.claims), grace_s=self._job_completion_wait)
        if self._run is not None:
            self.loop.call_later(self._job_completion_wait, self.force)

    def force(self) -> None:
        """Cancel what runs and give it back uncharged, now; `main` returns within seconds."""
        self._draining = True
        self._asked_to_end.set()
        self.allow_pick_jobs = False
        run = self._run
        if self._forced or run is None:
            return
        self._forced = True
        run.leave_by = self.loop.time() + _CLEANUP_S + _LAST_WORD_S
        for claim in list(self.claims.values()):
            self._interrupt(claim, "shutdown")
        self.loop.call_later(_CLEANUP_S, self._abandon)
        self._kick()

    def handle_sig(self, signum: signal.Signals) -> None:
        """First signal: drain. Second: give back at once."""
        if self._draining or signum == signal.SIGUSR1:
            self.force()
        else:
            self.drain()
        if self.on_stop is not None:
            self.on_stop(signal.Signals(signum))

    handle_sig_wait_for_completion = handle_sig

    # -- life --------------------------------------------------------------------

    async def main(self) -> None:
        """
        Work until drained, or in burst mode until the queue is empty.

        Cancelling it drains; cancelling it again gives everything back at once.
        """
        self.loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = await self._connect()
        if not await self._reach_server():
            return
        await guard.check_server(self.pool, allow_eviction=self.options.allow_eviction)
        self.ctx["redis"] = self.pool
        self.ctx.setdefault("worker_id", self.worker_id)
        if self.on_startup:
            await self.on_startup(self.ctx)
        self._started_up = True
        run = self._run = self._assemble()
        if self._draining:
            self.allow_pick_jobs = False
        run.leases.start()
        helpers = [
            asyncio.create_task(coroutine)
            for coroutine in (run.waker.run(), run.heart.run(self.record_health), run.crons.run())
        ]
        log.info("engine.started", worker_id=self.worker_id, queue=self.queue_name)
        turns = asyncio.create_task(self._turns(run))
        try:
            await self._until_over(turns)
        finally:
            await asyncio.gather(*run.side_tasks, return_exceptions=True)
            await end(turns, *helpers)
            await run.leases.stop()
            self._run = None
            with contextlib.suppress(*OUTAGE):
                async with asyncio.timeout(_LAST_WORD_S):
                    await run.heart.leave()
            log.info("engine.stopped", worker_id=self.worker_id, jobs_done=self.jobs_done)

    async def close(self) -> None:
        """As arq's: ends what still runs, calls on_shutdown, closes the connections."""
        if self._run is not None:
            self.force()
            await self._run.over.wait()
        if self._pool is None:
            return
        if self.on_shutdown and self._started_up:
            await self.on_shutdown(self.ctx)
        await close_client(self.pool)
        self._pool = None

    async def _until_over(self, turns: asyncio.Task[None]) -> None:
        cancelled = False
        while not turns.done():
            try:
                await asyncio.shield(turns)
            except asyncio.CancelledError:
                if turns.cancelled():
                    raise
                if cancelled:
                    self.force()
                cancelled = True
                self.drain()
            except PumpStopped:
                log.warning("worker.left_unheard", running=len(self.claims))
        if cancelled:
            raise asyncio.CancelledError
        if not turns.cancelled() and isinstance(turns.exception(), PumpStopped):
            return
        turns.result()

    async def _reach_server(self) -> bool:
        """Wait for the server as long as it takes; False when asked to end meanwhile."""
        ready = asyncio.create_task(
            wait_until_ready(self.pool, "the queue's server", deadline_s=None)
        )
        asked = asyncio.create_task(self._asked_to_end.wait())
        try:
            await asyncio.wait({ready, asked}, return_when=asyncio.FIRST_COMPLETED)
            return ready.done() and ready.exception() is None
        finally:
            await end(ready, asked)

    async def _connect(self) -> ArqRedis:
        pool = await create_pool(
            self.redis_settings,
            job_deserializer=self.job_deserializer,
            job_serializer=self.job_serializer,
            default_queue_name=self.queue_name,
            expires_extra_ms=self.expires_extra_ms,
        )
        # arq's settings have no limit for a reply: a hung server would hang us for ever.
        options = pool.connection_pool.connection_kwargs
        options["socket_timeout"] = options.get("socket_timeout") or _SOCKET_TIMEOUT_S
        options["retry_on_error"] = [*(options.get("retry_on_error") or ()), *CONNECT_ANEW]
        if "path" not in options:  # a unix socket's connection takes no such option
            options["socket_keepalive"] = True
        await pool.connection_pool.disconnect()
        return pool

    def _assemble(self) -> _Run:
        client, keys, options = self.pool, self.keys, self.options
        executor = Executor(
            self._settings(), now_ms=self.server_ms, collect=self._collect, note=self._note
        )
        run = _Run(
            pump=Pump(client, keys, options, worker_id=self.worker_id),
            waker=Waker(client, keys, self._kick),
            executor=executor,
            heart=Heart(
                client,
                keys,
                options,
                worker_id=self.worker_id,
                health_key=self.health_check_key,
                report=self._report,
                kick=self._kick,
            ),
            crons=CronRunner(
                client,
                keys,
                self.cron_jobs,
                encode=self.job_serializer or codec.encode,
                missed=options.cron_missed,
                now_ms=self.server_ms,
                timezone=self.timezone,
            ),
            leases=LeaseKeeper(
                client, keys, self.claims, lease_s=options.lease_s, on_lost=self._on_lost
            ),
        )
        run.pump.may_give_up = lambda: self._forced and self.loop.time() > run.leave_by
        return run

    def _settings(self) -> Settings:
        return Settings(
            functions=self.functions,
            ctx=self.ctx,
            options=self.options,
            worker_id=self.worker_id,
            queue_names=self.keys.queues,
            serializer=cast(Any, self.job_serializer),
            deserializer=cast(Any, self.job_deserializer),
            job_timeout_s=self.job_timeout_s,
            keep_result_s=self.keep_result_s or 0,
            keep_result_forever=self.keep_result_forever,
            max_tries=self.max_tries,
            retry_jobs=self.retry_jobs,
            allow_abort_jobs=self.allow_abort_jobs,
            # Nobody waits for a deploy in a burst.
            park_s=0 if self.burst else self.options.park_s,
            on_job_start=self.on_job_start,
            on_job_end=self.on_job_end,
            after_job_end=self.after_job_end,
            observer=self.observer,
        )

    # -- turns -------------------------------------------------------------------

    async def _turns(self, run: _Run) -> None:
        try:
            await self.crons_first(run)
            while True:
                run.kick.clear()
                batch, run.outbox = run.outbox[:MOST_ENDS], run.outbox[MOST_ENDS:]
                want = self._free_slots(run)
                run.sending = True
                trial = run.suspect is None or run.suspect.ended
                turn = await run.pump.turn([end for _, end, _ in batch], want, suspects=int(trial))
                run.sending = False
                self._clock_offset_s = turn.now / 1000 - self.loop.time()
                self._account(batch, turn)
                self._start(run, turn)
                if self._is_over(run, turn):
                    return
                if turn.scheduled:
                    self._spawn(run, run.crons.run_schedules())
                await self._pause(run, turn)
        finally:
            run.over.set()

    async def crons_first(self, run: _Run) -> None:
        """In burst mode the ticks that are due belong to the burst."""
        if self.burst and self.cron_jobs:
            with contextlib.suppress(*OUTAGE):
                await run.crons.tick()

    def _free_slots(self, run: _Run) -> int:
        if not self.allow_pick_jobs:
            return 0
        free = self.max_jobs - len(self.claims)
        if self.burst and self.max_burst_jobs >= 0:
            free = min(free, self.max_burst_jobs - run.started)
        return max(0, free)

    def _is_over(self, run: _Run, turn: Turn) -> bool:
        if self.claims or run.outbox:
            return False
        if self._draining:
            return True
        spent = self.max_burst_jobs >= 0 and run.started >= self.max_burst_jobs
        return self.burst and (spent or turn.size == 0)

    async def _pause(self, run: _Run, turn: Turn) -> None:
        free = self._free_slots(run)
        if run.outbox or (turn.more and free and (turn.claims or turn.poisoned)):
            # The jobs just started get a step, so that the quick ones end in one turn.
            await asyncio.sleep(0)
            return
        run.waker.set_idle(bool(free))
        poll_s = self.options.poll_s
        if self.claims and self.allow_abort_jobs:
            poll_s = min(poll_s, self.options.abort_poll_s)
        if turn.next_due is not None and free:
            poll_s = min(poll_s, max(0.001, (turn.next_due - turn.now) / 1000))
        timer = self.loop.call_later(poll_s, run.kick.set)
        await run.kick.wait()
        timer.cancel()
        run.waker.set_idle(False)

    def _start(self, run: _Run, turn: Turn) -> None:
        for claim in turn.claims:
            # Its lease lapsed here, and it came back to us.
            self._on_lost([old] if (old := self.claims.get(claim.id)) else [])
            self.claims[claim.id] = claim
            run.started += 1
            if claim.losses:
                self.jobs_rescued += 1
                if claim.losses + 1 >= self.options.max_lost_leases:
                    run.suspect = claim
                log.warning("job.rescued", job_id=claim.job_id, losses=claim.losses)
            task = self.loop.create_task(run.executor.run(claim))
            claim.task = self.tasks[claim.job_id] = self.job_tasks[claim.job_id] = task
            task.add_done_callback(partial(self._forget_task, claim))
        if self.allow_abort_jobs and turn.marks:
            for id_ in turn.marks:
                running = self.claims.get(id_)
                if running is not None and running.started:
                    self._interrupt(running, "abort")
        if turn.poisoned:
            log.error("job.poisoned", job_ids=[i.decode(errors="replace") for i in turn.poisoned])
            self.jobs_dead += len(turn.poisoned)
            self._spawn(run, poison.tell(self, turn.poisoned))
        if self._forced:
            for claim in turn.claims:
                self._interrupt(claim, "shutdown")

    def _account(self, batch: list[tuple[Claim, End, str]], turn: Turn) -> None:
        late = set(turn.late)
        buried = set(turn.buried)
        for index, (claim, _, outcome) in enumerate(batch):
            if claim.recorded is not None and outcome != "started":
                claim.recorded.set()
            if index in late:
                log.warning("job.ended_late", job_id=claim.job_id, outcome=outcome)
            elif outcome == "completed":
                self.jobs_complete += 1
            elif outcome in ("retried", "given_back"):
                self.jobs_retried += 1
                self.jobs_given_back += outcome == "given_back"
            elif outcome == "parked" and index not in buried:
                log.warning("job.parked", job_id=claim.job_id)
            elif outcome != "started":
                self.jobs_failed += 1
                self.jobs_dead += outcome != "aborted"

    # -- called by tasks, timers and threads ---------------------------------------

    def _collect(self, claim: Claim, end: End, outcome: str) -> None:
        run = self._run
        if claim.ended or run is None:
            return
        claim.ended = True
        if self.claims.get(claim.id) is claim:
            del self.claims[claim.id]
        if claim.stop == "lost":
            # Another worker holds it: there is nothing to say.
            if claim.recorded is not None:
                claim.recorded.set()
            return
        run.outbox.append((claim, end, outcome))
        run.kick.set()

    def _note(self, claim: Claim, note: End) -> None:
        if self._run is not None:
            self._run.outbox.append((claim, note, "started"))
            self._run.kick.set()

    def _interrupt(self, claim: Claim, why: str) -> None:
        interrupt(claim, why)
        if not claim.started:
            # Cancelled before its first step, its coroutine says nothing itself.
            self._collect(claim, given_back(claim), "given_back")

    def _abandon(self) -> None:
        for claim in list(self.claims.values()):
            log.warning("job.ignored_cancellation", job_id=claim.job_id)
            self._collect(claim, given_back(claim), "given_back")

    def _forget_task(self, claim: Claim, task: asyncio.Task[Any]) -> None:
        if self.tasks.get(claim.job_id) is task:
            del self.tasks[claim.job_id], self.job_tasks[claim.job_id]
        if not claim.ended:
            # Not a job's error: a bug, or a BaseException such as SystemExit.
            error = None if task.cancelled() else task.exception()
            log.error("job.task_broken", job_id=claim.job_id, error=repr(error))
            self._collect(claim, given_back(claim), "given_back")

    def _on_lost(self, claims: list[Claim]) -> None:
        for claim in claims:
            if not claim.ended:
                log.warning("lease.lost", job_id=claim.job_id)
                self._interrupt(claim, "lost")

    def _kick(self) -> None:
        if self._run is not None:
            self._run.kick.set()

    def _spawn(self, run: _Run, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        run.side_tasks.add(task)
        task.add_done_callback(run.side_tasks.discard)

    # -- small things ----------------------------------------------------------------

    def server_ms(self) -> int:
        """The server's clock, Unix ms, as of the last turn."""
        if not self._clock_offset_s:
            return timestamp_ms()
        return int((self.loop.time() + self._clock_offset_s) * 1000)

    async def record_health(self) -> None:
        """arq's health key, with each heartbeat; its life outlasts three of them."""
        queued = await self.pool.zcard(self.queue_name)
        info = (
            f"{datetime.now(UTC):%b-%d %H:%M:%S} j_complete={self.jobs_complete} "
            f"j_failed={self.jobs_failed} j_retried={self.jobs_retried} "
            f"j_ongoing={len(self.claims)} queued={queued}"
        )
        life_s = max(self.health_check_interval + 1, 3 * self.options.beat_s)
        await self.pool.set(self.health_check_key, info, px=round(life_s * 1000))

    def _report(self) -> dict[str, Any]:
        return {
            "queue": self.queue_name,
            "running": len(self.claims),
            "max_jobs": self.max_jobs,
            "completed": self.jobs_complete,
            "failed": self.jobs_failed,
            "retried": self.jobs_retried,
            "draining": self._draining,
        }
