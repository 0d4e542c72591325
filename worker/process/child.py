"""
The worker process's own side of supervision: signals, heartbeats, recycling, its parent's death.

`serve` runs any `ManagedWorker`. TERM or INT drains it, a second one forces it,
a third ends it, TSTP quiets it. Under `worker.process.supervisor` two inherited pipes
tie it to its parent: it writes a beat into one from its event loop, so that a
blocked loop is noticed, and the other ends when the parent does, however it
died. There TERM always means drain and INT always means force, because the
parent counts. Without the pipes (one process a pod, or run by hand) the same
code serves alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import stat
import sys
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import structlog

from worker.process.policy import ExitCode
from worker.terminal import printable_lines

log = structlog.get_logger(__name__)

# Names of the environment variables that carry the pipes' file descriptors.
HEARTBEAT_FD = "LETTA_SUPERVISOR_HEARTBEAT_FD"
PARENT_FD = "LETTA_SUPERVISOR_PARENT_FD"
# What a child writes into its heartbeat pipe: one message a line.
HEARTBEAT = b"beat"
COMPLAINT = b"bad_configuration "
# Below PIPE_BUF even in UTF-8, so that a message is written whole or not at all.
_MAX_COMPLAINT_CHARS = 1000


class ManagedWorker(Protocol):
    """
    What `serve` can run. Every method is called on the event loop; `drain`, `quiet` and
    `force` may come at any time after `run` was called, in any order, and return at once.
    """

    @property
    def jobs_done(self) -> int:
        """Jobs ended since the start, failed ones too."""

    async def run(self) -> None:
        """Work; return when drained."""

    def drain(self) -> None:
        """Stop claiming; running jobs get the grace, then are given back."""

    def quiet(self) -> None:
        """Stop claiming, go on with what runs, stay up."""

    def force(self) -> None:
        """Give everything back at once, and end."""


@dataclass(frozen=True, slots=True)
class ChildOptions:
    """
    Bounds of one worker process. Times are seconds, sizes bytes, 0 switches a bound off.

    beat_interval_s: time between two heartbeats, and between two looks at the bounds below.
    shutdown_grace_s: what `drain` may take; only enforced here when the parent is gone.
    kill_margin_s: over the grace, what giving back and closing may take.
    max_rss_bytes: resident memory over which the process drains and is replaced.
    max_jobs_done: jobs after which it drains and is replaced.
    recycle_jitter: share by which each process lowers `max_jobs_done`, at random, so that
        processes started together do not all drain together.
    configuration_errors: exceptions of `run` that no restart mends; their text is one line.
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

    DRAINED after a signal or the parent's death, and when `run` returned by
    itself; FORCED after a second signal; RECYCLE when a bound was reached;
    BAD_CONFIGURATION for `options.configuration_errors`, reported in one line.

    Raises:
        Exception: whatever else `worker.run` raised.
    """
    return await _Child(worker, options, rng or random.Random()).run()  # noqa: S311  (no secret)


def report_bad_configuration(line: str) -> int:
    """
    Say what is wrong with the configuration, and return the exit code for it.

    A supervisor is told through its pipe and shows the line once, whatever the
    number of its processes; without one it goes to standard error.
    """
    return _complain(line, _inherited_pipe(HEARTBEAT_FD))


def rss_bytes() -> int:
    """Resident memory of this process; where /proc is absent, the most it ever was."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123  (one read a second, kept cheap)
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _say(fd: int, message: bytes) -> bool:
    # A full pipe is a parent that does not read; a broken one has its own watch.
    with contextlib.suppress(OSError):
        return os.write(fd, message + b"\n") > 0
    return False


def _complain(line: str, fd: int | None) -> int:
    line = " ".join(line.split())
    if fd is None or not _say(fd, COMPLAINT + line[:_MAX_COMPLAINT_CHARS].encode()):
        sys.stderr.write(printable_lines(line) + "\n")
    return ExitCode.BAD_CONFIGURATION


def _inherited_pipe(name: str) -> int | None:
    """The descriptor that the variable names, taken out of reach of this process's children."""
    fd = int(os.environ.pop(name, "-1"))
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            return None
        os.set_inheritable(fd, False)
    except OSError:
        return None
    return fd


class _Child:
    def __init__(self, worker: ManagedWorker, options: ChildOptions, rng: random.Random) -> None:
        self._worker = worker
        self._options = options
        self._heartbeat_fd = _inherited_pipe(HEARTBEAT_FD)
        self._parent_fd = _inherited_pipe(PARENT_FD)
        spread = 1.0 - options.recycle_jitter * rng.random()
        self._max_jobs = max(1, round(options.max_jobs_done * spread))
        self._stop_signals = 0
        self._draining = False
        self._exit_code = ExitCode.DRAINED

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGTSTP, self._on_quiet)
        working = asyncio.ensure_future(self._worker.run())
        beating = asyncio.create_task(self._heartbeat())
        self._watch_parent(loop)
        try:
            await working
        except self._options.configuration_errors as exc:
            return _complain(str(exc) or type(exc).__name__, self._heartbeat_fd)
        finally:
            beating.cancel()
        log.info("process.ended", exit_code=int(self._exit_code), jobs_done=self._worker.jobs_done)
        return self._exit_code

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
            # Forcing did not end it either; the leases give its jobs to others.
            os._exit(ExitCode.FORCED)

    def _on_quiet(self) -> None:
        log.info("process.quieted")
        self._worker.quiet()

    def _drain(self, reason: str) -> None:
        if not self._draining:
            self._draining = True
            log.info("process.draining", reason=reason, grace_s=self._options.shutdown_grace_s)
            self._worker.drain()

    def _force(self, reason: str) -> None:
        self._exit_code = ExitCode.FORCED
        log.warning("process.forced", reason=reason)
        self._worker.force()

    async def _heartbeat(self) -> None:
        if self._heartbeat_fd is not None:
            os.set_blocking(self._heartbeat_fd, False)
        while True:
            if self._heartbeat_fd is not None:
                _say(self._heartbeat_fd, HEARTBEAT)
            self._recycle_when_due()
            await asyncio.sleep(self._options.heartbeat_interval_s)

    def _recycle_when_due(self) -> None:
        jobs_done = self._worker.jobs_done
        # A bound below the size at the start would otherwise recycle for ever without one job.
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
        # A thread, because an orphan with a blocked loop must end as well.
        if self._parent_fd is not None:
            arguments = (self._parent_fd, loop)
            threading.Thread(target=self._outlive, args=arguments, daemon=True).start()

    def _outlive(self, parent_fd: int, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the parent's end, then see to this process's: drain, force, exit."""
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
