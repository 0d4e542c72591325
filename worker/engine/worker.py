"""
The worker: `arq.worker.Worker`'s arguments and meaning, on claims and leases.

One poll reports finished jobs and claims due ones (poll.py, lua/poll.lua). A
thread renews the leases (leases.py). A token wakes an idle worker (wake.py), as
does a stock client's job (listen.py). docs/states.md draws a job's states;
docs/arq.md lists the differences from arq and the reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from datetime import UTC, datetime
from functools import partial
from typing import Any

from cache.connection.pool import OUTAGE, close_client
from cache.connection.tasks import end
from cache.logs import get_logger
from worker.engine.arrival import arrive
from worker.engine.composition import Run, assemble, connect
from worker.engine.heartbeat import beat, leave
from worker.engine.poll import PollStopped
from worker.engine.state import WorkerState
from worker.helpers import keep_running

log = get_logger(__name__)

# After the grace, canceled jobs have this long to clean up.
_CLEANUP_S = 2.0
# After the cleanup, the last ends have this long to reach the server.
_LAST_POLL_S = 5.0


class Worker(WorkerState):
    """
    Runs jobs. Takes every argument of `arq.worker.Worker`, and:

    options: `EngineOptions`; without a retry policy arq's rules for exceptions hold.
    prefix: beginning of all keys; stock clients use `arq:` only.
    worker_id: this worker's name in claims, heartbeats and logs.
    observer: called at the end of each run.

    `job_completion_wait` is the grace of a drain, in seconds. Without
    serializers jobs and results are msgpack (`cache.encoding.codec`), never pickle.

    Raises:
        worker.errors.UnsafeServer: from `main`, when the server may evict jobs.
        cache.errors.RedisRefused: from `main`, when the server refuses this client for good.
    """

    _run: Run | None = None
    _forced = False
    _started_up = False

    # -- state and control ------------------------------------------------------

    @property
    def jobs_running(self) -> int:
        """Number of running jobs, without those claimed ahead."""
        return 0 if self._run is None else self._run.slots.running

    @property
    def components(self) -> Run | None:
        """The components of the running `main()`; None when none runs."""
        return self._run

    @property
    def is_connected(self) -> bool:
        return self._run is not None and self._run.poll.is_connected

    @property
    def has_unsent_ends(self) -> bool:
        """Whether jobs have ended that the server may not know about."""
        return self._run is not None and self._run.poller.has_unsent_ends

    def quiet(self) -> None:
        """Stop claiming; running jobs continue."""
        self.allow_pick_jobs = False
        if self._run is not None:
            self._run.slots.release()
            self._run.slots.kick.set()

    def drain(self) -> None:
        """
        Stop claiming and let `main` return.

        Running jobs have the grace to end; then they are given back uncharged.
        """
        if self._draining:
            return
        self._draining = True
        self.asked_to_end.set()
        self.quiet()
        log.info("worker.draining", running=self.jobs_running, grace_s=self._job_completion_wait)
        if self._run is not None:
            self.loop.call_later(self._job_completion_wait, self.force)

    def force(self) -> None:
        """Cancel the running jobs now, give them back uncharged; `main` returns within seconds."""
        self._draining = True
        self.asked_to_end.set()
        self.allow_pick_jobs = False
        run = self._run
        if self._forced or run is None:
            return
        self._forced = True
        run.leave_by = self.loop.time() + _CLEANUP_S + _LAST_POLL_S
        run.slots.interrupt_all()
        self.loop.call_later(_CLEANUP_S, run.slots.abandon)
        run.slots.kick.set()

    def handle_sig(self, signum: signal.Signals) -> None:
        """Drain on the first signal; on the second, give all jobs back at once."""
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

        Canceling it drains; canceling it again gives all jobs back at once.
        """
        self.loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = await connect(self)
        offset_s = await arrive(
            self.pool,
            self.queue_name,
            allow_eviction=self.options.allow_eviction,
            asked_to_end=self.asked_to_end,
        )
        if offset_s is None:
            return
        self._clock_offset_s = offset_s
        self.ctx["redis"] = self.pool
        self.ctx.setdefault("worker_id", self.worker_id)
        if self.on_startup:
            await self.on_startup(self.ctx)
        self._started_up = True
        run = self._run = assemble(self, report=self._report)
        if self._draining:
            self.allow_pick_jobs = False
        run.poll.may_give_up = lambda: self._forced and self.loop.time() > run.leave_by
        run.leases.start()
        helpers = self._start_helpers(run)
        log.info("engine.started", worker_id=self.worker_id, queue=self.queue_name)
        poller = asyncio.create_task(run.poller.run())
        poller.add_done_callback(lambda _: run.over.set())
        try:
            await self._until_over(poller)
        finally:
            for task in helpers:
                task.remove_done_callback(self._helper_over)
            await run.poller.finish()
            await end(poller, *helpers, limit_s=float("inf"))
            run.executor.close()
            if run.scripts is not self.pool:
                await run.scripts.aclose()
            await run.leases.stop()
            self._run = None
            await self._leave(closed=not self.burst)
            log.info("engine.stopped", worker_id=self.worker_id, jobs_done=self.jobs_done)

    def _start_helpers(self, run: Run) -> list[asyncio.Task[None]]:
        beat = partial(run.heartbeat.run, self.write_health, every_s=self.health_check_interval)
        helpers = [
            asyncio.create_task(keep_running(name, helper), name=name)
            for name, helper in (
                ("waiting", run.poller.run_waker),
                ("heartbeat", beat),
                ("crons", run.crons.run),
            )
        ]
        for task in helpers:
            task.add_done_callback(self._helper_over)
        return helpers

    async def close(self) -> None:
        """As in arq: end what still runs, call on_shutdown, close the connections."""
        if self._run is not None:
            self.force()
            await self._run.over.wait()
        if self._pool is None:
            return
        if self._started_up:
            if self.burst:
                await self._leave(closed=True)
            if self.on_shutdown:
                await self.on_shutdown(self.ctx)
        await close_client(self.pool)
        self._pool = None

    async def _leave(self, *, closed: bool) -> None:
        """Delete this worker's keys. As in arq, a burst's health is read until it is closed."""
        with contextlib.suppress(*OUTAGE):
            async with asyncio.timeout(_LAST_POLL_S):
                if not closed:
                    await self.write_health(0)  # it may be over before its first heartbeat
                await leave(
                    self.pool, self.keys, self.worker_id, self.health_check_key, closed=closed
                )

    async def _until_over(self, poller: asyncio.Task[None]) -> None:
        canceled = False
        while not poller.done():
            try:
                await asyncio.shield(poller)
            except asyncio.CancelledError:
                if poller.cancelled():
                    raise
                if canceled:
                    self.force()
                canceled = True
                self.drain()
            except PollStopped:
                log.warning("worker.ended_unreported", running=len(self.claims))
        if canceled:
            raise asyncio.CancelledError
        if not poller.cancelled() and isinstance(poller.exception(), PollStopped):
            return
        poller.result()

    def _helper_over(self, helper: asyncio.Task[None]) -> None:
        """End the worker when somebody else canceled one of its helpers."""
        if helper.cancelled():
            log.error("helper.canceled", helper=helper.get_name())
            self.drain()

    # -- health ----------------------------------------------------------------------

    async def write_health(self, interval_s: float) -> None:
        """Write arq's health key; its TTL is at least three times `interval_s`."""
        info = (
            f"{datetime.now(UTC):%b-%d %H:%M:%S} j_complete={self.jobs_complete} "
            f"j_failed={self.jobs_failed} j_retried={self.jobs_retried} "
            f"j_ongoing={self.jobs_running} queued={self.jobs_queued}"
        )
        life_s = max(self.health_check_interval + 1, 3 * interval_s)
        await beat(self.pool, self.health_check_key, info, round(life_s * 1000))

    def _report(self) -> dict[str, Any]:
        return {
            "queue": self.queue_name,
            "running": self.jobs_running,
            "max_jobs": self.max_jobs,
            "completed": self.jobs_complete,
            "failed": self.jobs_failed,
            "retried": self.jobs_retried,
            "draining": self._draining,
            "at": self.server_ms(),
        }
