"""
Supervises worker processes: starts, watches, replaces and stops them.

The parent keeps `count` processes of a command running, forked by one that has
imported everything (`worker.process.forks`), each in its own session, so that a
terminal's Ctrl-C reaches the parent only. It replaces a process that
ends (`worker.process.policy` decides when), kills one whose event loop sends no
heartbeat, and forwards signals: the first TERM or INT drains, the second forces,
the third kills; TSTP quiets. Two pipes connect it to its children
(`worker.process.child`); no child outlives it. Exit codes: `ExitCode`.

To a child, TERM always means drain and INT always means force. systemd sends TERM
to the parent and to every child, so a second TERM must not force a child.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence

from cache.logs import get_logger
from worker.helpers import keep_running
from worker.process.forks import ForkServer, ForkServerEnded
from worker.process.policy import (
    CrashWindow,
    Ending,
    ExitCode,
    SlotHistory,
    SupervisorOptions,
    decide_restart,
)
from worker.process.process import ChildProcess, signal_name, watch_heartbeats
from worker.terminal import printable_lines

log = get_logger(__name__)


def run_supervisor(command: Sequence[str], count: int, options: SupervisorOptions) -> int:
    """
    Keep `count` processes of `command` running until a signal; return the exit code.

    The command runs without a shell, with this process's environment, standard output and
    standard error. It must import what it needs, call
    `worker.process.fork_server.fork_on_request`, and then `worker.process.child.serve`: a
    process that sends no heartbeat is killed. Call this from the main thread.
    """
    return asyncio.run(_Supervisor(command, count, options).run())


class _Supervisor:
    def __init__(self, command: Sequence[str], count: int, options: SupervisorOptions) -> None:
        self._program = command[0]
        self._forks = ForkServer(command)
        self._count = count
        self._options = options
        self._rng = random.Random()  # noqa: S311  (spreads restarts; no secret)
        self._crashes = CrashWindow(options.restart)
        self._running: dict[int, ChildProcess] = {}
        self._proven = asyncio.Event()  # one child has started well: start the others
        self._ending = asyncio.Event()
        self._quiet = False
        self._stop_signals = 0
        self._exit_code = ExitCode.DRAINED

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop, number)
        self._loop.add_signal_handler(signal.SIGTSTP, self._on_quiet)
        # Only this process has the write end, so children see the pipe close when it dies.
        self._parent_pipe, write_end = os.pipe()
        log.info("supervisor.started", pid=os.getpid(), count=self._count)
        watching = asyncio.create_task(keep_running("watch", self._watch))
        try:
            async with asyncio.TaskGroup() as slots:
                for slot in range(self._count):
                    slots.create_task(self._keep(slot))
        finally:
            watching.cancel()
            await self._forks.close()
            os.close(self._parent_pipe)
            os.close(write_end)
        log.info("supervisor.ended", exit_code=int(self._exit_code))
        return self._exit_code

    # -- one slot --------------------------------------------------------------

    async def _keep(self, slot: int) -> None:
        """Keep one process running until the end."""
        history, starts = SlotHistory(self._options.restart), 0
        if slot > 0:
            # The first child proves the configuration, so that a bad one is reported once.
            await self._until(self._proven, self._options.restart.stable_after_s)
        while not self._ending.is_set():
            if self._quiet:  # a replacement would claim jobs
                log.info("supervisor.slot_left_empty", slot=slot)
                await self._ending.wait()
                return
            started_at = self._loop.time()
            code = await self._run_once(slot, starts)
            starts += 1
            uptime_s = self._loop.time() - started_at
            ending = decide_restart(code, uptime_s, self._options.restart)
            if self._ending.is_set():
                return
            if ending is Ending.BAD_CONFIGURATION:
                self._end(ExitCode.BAD_CONFIGURATION)
            elif ending is Ending.CRASH and self._crashes.note(self._loop.time()):
                window_s = self._options.restart.crash_window_s
                log.error("supervisor.crash_loop_ended", slot=slot, window_s=window_s)
                self._end(ExitCode.CRASHED)
            else:
                wait_s = history.wait_s(ending, uptime_s, self._rng)
                log.info("supervisor.restart_scheduled", slot=slot, wait_s=round(wait_s, 3))
                await self._until(self._ending, wait_s)

    async def _run_once(self, slot: int, starts: int) -> int:
        """Run one process to its end; return its exit code, negative for a signal."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        try:
            child = await self._fork(slot, read_end, write_end)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        if isinstance(child, int):
            os.close(read_end)
            return child
        event = "supervisor.child_restarted" if starts else "supervisor.child_started"
        log.info(event, slot=slot, pid=child.pid, restarts=starts)
        self._running[slot] = child
        if self._ending.is_set():
            child.signal(signal.SIGTERM)
        self._loop.add_reader(read_end, self._on_message, child, read_end)
        try:
            code = await child.ended
            self._on_message(child, read_end)
        finally:
            del self._running[slot]
            self._loop.remove_reader(read_end)
            os.close(read_end)
        self._note_end(child, code)
        return code

    async def _fork(self, slot: int, read_end: int, write_end: int) -> ChildProcess | int:
        """Start a process, or return the exit code that its failure amounts to."""
        try:
            async with asyncio.timeout(self._options.heartbeat_timeout_s or None):
                return await self._forks.fork(slot, read_end, write_end, self._parent_pipe)
        except ForkServerEnded as exc:
            return exc.exit_code
        except TimeoutError:
            log.error("supervisor.fork_server_stuck", slot=slot)  # noqa: TRY400
            await self._forks.close()
            return ExitCode.CRASHED
        except (FileNotFoundError, PermissionError) as exc:
            sys.stderr.write(f"{self._program} cannot be run: {exc.strerror}\n")
            return ExitCode.BAD_CONFIGURATION
        except OSError as exc:  # out of processes or memory: try again later
            log.error("supervisor.spawn_failed", slot=slot, error=str(exc))  # noqa: TRY400
            return ExitCode.CRASHED

    def _on_message(self, child: ChildProcess, fd: int) -> None:
        was_ready = child.ready
        if not child.read():
            self._loop.remove_reader(fd)
        if child.ready and not was_ready:
            after_s = round(self._loop.time() - child.started_at, 3)
            log.info("supervisor.child_ready", slot=child.slot, pid=child.pid, after_s=after_s)
            self._proven.set()
            if self._quiet:
                child.signal(signal.SIGTSTP)

    def _note_end(self, child: ChildProcess, code: int) -> None:
        uptime_s = round(self._loop.time() - child.started_at, 3)
        cause = {"signal": signal_name(-code)} if code < 0 else {"exit_code": code}
        clean = code in (ExitCode.DRAINED, ExitCode.RECYCLE)
        event = log.info if clean else log.warning
        event("supervisor.child_ended", slot=child.slot, pid=child.pid, uptime_s=uptime_s, **cause)
        if child.complaint and not self._ending.is_set():
            sys.stderr.write(printable_lines(child.complaint) + "\n")
        # A child that TERM ended before it set its signal handlers had no jobs to drain.
        if self._ending.is_set() and not clean and code != -signal.SIGTERM:
            forced = child.killed or code == ExitCode.FORCED
            self._raise_exit_code(ExitCode.FORCED if forced else ExitCode.CRASHED)

    # -- all of them -----------------------------------------------------------

    def _on_stop(self, number: signal.Signals) -> None:
        self._stop_signals += 1
        if self._stop_signals == 1:
            log.info("supervisor.draining", signal=number.name)
            self._end(ExitCode.DRAINED)
        elif self._stop_signals == 2:
            log.warning("supervisor.forced", signal=number.name)
            self._pass_on(signal.SIGINT, limit_s=self._options.kill_margin_s)
        else:
            self._kill_all()

    def _on_quiet(self) -> None:
        log.info("supervisor.quieted")
        self._quiet = True
        for child in self._running.values():
            # Without its handler the signal would stop a child; it gets the signal when ready.
            if child.ready:
                child.signal(signal.SIGTSTP)

    def _end(self, code: ExitCode) -> None:
        """Drain every child; the first reason to end sets the exit code."""
        if not self._ending.is_set():
            self._exit_code = code
            self._ending.set()
            self._forks.give_up_start()
            limit_s = self._options.shutdown_grace_s + self._options.kill_margin_s
            self._pass_on(signal.SIGTERM, limit_s=limit_s)

    def _raise_exit_code(self, code: ExitCode) -> None:
        if self._exit_code == ExitCode.DRAINED:
            self._exit_code = code

    def _pass_on(self, number: signal.Signals, *, limit_s: float) -> None:
        for child in self._running.values():
            child.signal(number)
        self._loop.call_later(limit_s, self._kill_all)

    def _kill_all(self) -> None:
        for child in self._running.values():
            log.error("supervisor.child_killed", slot=child.slot, pid=child.pid)
            child.kill()

    async def _watch(self) -> None:
        if self._options.heartbeat_timeout_s:
            await watch_heartbeats(self._running, self._options.heartbeat_timeout_s)

    async def _until(self, event: asyncio.Event, limit_s: float) -> None:
        """Wait for an event, at most `limit_s` and until the supervisor ends."""
        waits = [asyncio.ensure_future(e.wait()) for e in {event, self._ending}]
        await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
