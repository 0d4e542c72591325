"""
Runs a worker in a child process: signals, heartbeats, recycling and the parent's death.

`serve` runs any `ManagedWorker`. TERM or INT drains it, a second one forces it,
a third ends it, TSTP quiets it. Under `worker.process.supervisor` the child
inherits two pipes. It writes heartbeats into one from its event loop, so that the
parent notices a blocked loop. The other one closes when the parent dies, however
it died. Under a supervisor TERM always drains and INT always forces, because the
parent counts the signals. Without the pipes (one process per pod, or started by
hand) the process runs alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from cache.logs import get_logger
from worker.helpers import keep_running
from worker.process.pipes import (
    COMPLAINT,
    EXIT_CODE,
    HEARTBEAT,
    HEARTBEAT_FD,
    PARENT_FD,
    inherited_pipe,
    send,
)
from worker.process.policy import ExitCode
from worker.terminal import printable_lines

log = get_logger(__name__)

# Below PIPE_BUF even in UTF-8, so that a message is written atomically.
_MAX_COMPLAINT_CHARS = 1000


class ManagedWorker(Protocol):
    """
    What `serve` can run. All methods are called on the event loop. `drain`, `quiet` and
    `force` may be called at any time after `run`, in any order, and return at once.
    """

    @property
    def jobs_done(self) -> int:
        """Number of jobs that ended since the start, failed ones included."""

    async def run(self) -> None:
        """Run jobs; return when drained."""

    def drain(self) -> None:
        """Stop claiming; running jobs get the grace, then are given back."""

    def quiet(self) -> None:
        """Stop claiming; running jobs continue, and so does the process."""

    def force(self) -> None:
        """Give all jobs back at once, and end."""


@dataclass(frozen=True, slots=True)
class ChildOptions:
    """
    Limits of one worker process. Times are seconds, sizes bytes; 0 switches a limit off.

    heartbeat_interval_s: time between two heartbeats, and between two checks of the limits.
    shutdown_grace_s: longest drain; enforced here only when the parent is dead.
    kill_margin_s: time beyond the grace to give jobs back and close.
    max_rss_bytes: resident memory above which the process drains and is replaced.
    max_jobs_done: jobs after which the process drains and is replaced.
    recycle_jitter: largest share by which each process lowers `max_jobs_done`, at random, so
        that processes started together do not all drain together.
    configuration_errors: exceptions of `run` that no restart fixes; their text is one line.
    """

    heartbeat_interval_s: float = 1.0
    shutdown_grace_s: float = 30.0
    kill_margin_s: float = 5.0
    max_rss_bytes: int = 0
    max_jobs_done: int = 0
    recycle_jitter: float = 0.1
    configuration_errors: tuple[type[Exception], ...] = ()


async def serve(
    worker: ManagedWorker, options: ChildOptions, *, rng: random.Random | None = None
) -> int:
    """
    Run a worker to its end and return the process's exit code (`ExitCode`).

    DRAINED after a signal, the parent's death, or a normal return of `run`; FORCED after
    a second signal; RECYCLE when a limit was reached; BAD_CONFIGURATION for
    `options.configuration_errors`, reported in one line.

    Raises:
        Exception: any other exception of `worker.run`.
    """
    return await _Child(worker, options, rng or random.Random()).run()  # noqa: S311  (no secret)


def report_bad_configuration(line: str) -> int:
    """
    Report what is wrong with the configuration, and return the exit code for it.

    Under a supervisor the line goes through the pipe, and the supervisor prints it once,
    whatever the number of its processes. Otherwise it goes to standard error.
    """
    return _complain(line, inherited_pipe(HEARTBEAT_FD))


def rss_bytes() -> int:
    """Return the resident memory of this process; its peak where /proc does not exist."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123  (one read a second, kept cheap)
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _complain(line: str, fd: int | None) -> int:
    line = " ".join(line.split())
    if fd is None or not send(fd, COMPLAINT + line[:_MAX_COMPLAINT_CHARS].encode()):
        sys.stderr.write(printable_lines(line) + "\n")
    return ExitCode.BAD_CONFIGURATION


_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGTSTP)


class _Child:
    def __init__(self, worker: ManagedWorker, options: ChildOptions, rng: random.Random) -> None:
        self._worker = worker
        self._options = options
        self._heartbeat_fd = inherited_pipe(HEARTBEAT_FD)
        self._parent_fd = inherited_pipe(PARENT_FD)
        spread = 1.0 - options.recycle_jitter * rng.random()
        self._max_jobs = max(1, round(options.max_jobs_done * spread))
        self._stop_signals = 0
        self._draining = False
        self._exit_code = ExitCode.DRAINED

    async def run(self) -> int:
        code = await self._run()
        # It is over. A signal while the loop closes would find the loop's pipe closed, and say so.
        for number in _HANDLED:
            signal.signal(number, signal.SIG_IGN)
        if self._heartbeat_fd is not None:
            send(self._heartbeat_fd, EXIT_CODE + b"%d" % code)
        return code

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _HANDLED:
            loop.add_signal_handler(number, self._on_signal, number)
        working = asyncio.ensure_future(self._worker.run())
        heartbeats = asyncio.create_task(keep_running("heartbeats", self._send_heartbeats))
        self._watch_parent(loop)
        try:
            await working
        except self._options.configuration_errors as exc:
            return _complain(str(exc) or type(exc).__name__, self._heartbeat_fd)
        finally:
            heartbeats.cancel()
        log.info("process.ended", exit_code=int(self._exit_code), jobs_done=self._worker.jobs_done)
        return self._exit_code

    def _on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGTSTP:
            log.info("process.quieted")
            self._worker.quiet()
        else:
            self._on_stop(number)

    def _on_stop(self, number: signal.Signals) -> None:
        self._stop_signals += 1
        if self._parent_fd is None:
            step = self._stop_signals
        else:
            step = 2 if number is signal.SIGINT else 1
        if step == 1:
            self._exit_code = ExitCode.DRAINED
            self._drain(number.name)
        elif step == 2:
            self._force(number.name)
        else:
            # Forcing did not end the process; its leases will lapse to other workers.
            os._exit(ExitCode.FORCED)

    def _drain(self, reason: str) -> None:
        if not self._draining:
            self._draining = True
            log.info("process.draining", reason=reason, grace_s=self._options.shutdown_grace_s)
            self._worker.drain()

    def _force(self, reason: str) -> None:
        self._exit_code = ExitCode.FORCED
        log.warning("process.forced", reason=reason)
        self._worker.force()

    async def _send_heartbeats(self) -> None:
        if self._heartbeat_fd is not None:
            os.set_blocking(self._heartbeat_fd, False)
        while True:
            if self._heartbeat_fd is not None:
                send(self._heartbeat_fd, HEARTBEAT)
            self._recycle_when_due()
            await asyncio.sleep(self._options.heartbeat_interval_s)

    def _recycle_when_due(self) -> None:
        jobs_done = self._worker.jobs_done
        # With a limit below the size at the start, the process must still run one job.
        if self._draining or not jobs_done:
            return
        rss = rss_bytes()
        many = self._options.max_jobs_done > 0 and jobs_done >= self._max_jobs
        large = 0 < self._options.max_rss_bytes < rss
        if many or large:
            reason = "rss" if large else "jobs"
            log.info("process.recycling", reason=reason, rss_bytes=rss, jobs_done=jobs_done)
            self._exit_code = ExitCode.RECYCLE
            self._drain("recycle")

    def _watch_parent(self, loop: asyncio.AbstractEventLoop) -> None:
        # A thread, because an orphan with a blocked event loop must end too.
        if self._parent_fd is not None:
            arguments = (self._parent_fd, loop)
            threading.Thread(target=self._outlive, args=arguments, daemon=True).start()

    def _outlive(self, parent_fd: int, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the parent's death, then end this process: drain, force, exit."""
        with contextlib.suppress(OSError):
            while os.read(parent_fd, 1):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: already ending
            loop.call_soon_threadsafe(self._on_parent_death)
            time.sleep(self._options.shutdown_grace_s + self._options.kill_margin_s)
            loop.call_soon_threadsafe(self._force, "parent ended")
        time.sleep(self._options.kill_margin_s)
        os._exit(ExitCode.FORCED)

    def _on_parent_death(self) -> None:
        log.warning("process.parent_lost", pid=os.getpid())
        self._exit_code = ExitCode.DRAINED
        self._drain("parent ended")
