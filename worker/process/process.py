"""
The parent's view of worker processes: read their pipes, signal and kill them, learn of their ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping

from cache.logs import get_logger
from worker.process.pipes import COMPLAINT, EXIT_CODE, HEARTBEAT
from worker.process.policy import ExitCode

log = get_logger(__name__)

_PIPE_BYTES = 65_536


class ChildProcess:
    """A process and the messages of its heartbeat pipe. Times are the loop's."""

    def __init__(self, pid: int, slot: int, pipe: int) -> None:
        loop = asyncio.get_running_loop()
        self.slot = slot
        self.pid = pid
        self.ended: asyncio.Future[int] = loop.create_future()  # exit code; negative: a signal
        self.complaint = ""  # why its configuration is bad, one line
        self.ready = False  # it has sent a heartbeat, so its signal handlers are set
        self.killed = False
        self.started_at = self.last_heartbeat = loop.time()
        self._pipe = pipe
        self._rest = b""
        self._pipe_open = True
        self._orphaned = False
        self._exit_code = int(ExitCode.CRASHED)

    def read(self) -> bool:
        """Read the pipe's messages; return False at its end."""
        try:
            data = os.read(self._pipe, _PIPE_BYTES)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line == HEARTBEAT:
                self.last_heartbeat = asyncio.get_running_loop().time()
                self.ready = True
            elif line.startswith(COMPLAINT):
                self.complaint = line.removeprefix(COMPLAINT).decode(errors="replace")
            elif line.startswith(EXIT_CODE):
                self._exit_code = int(line.removeprefix(EXIT_CODE))
        self._pipe_open = bool(data)
        self._note_unreported_end()
        return self._pipe_open

    def orphan(self) -> None:
        """Its fork server is gone. The end of its pipe now tells that it ended."""
        self._orphaned = True
        self._note_unreported_end()

    def _note_unreported_end(self) -> None:
        if self._orphaned and not self._pipe_open and not self.ended.done():
            self.ended.set_result(-signal.SIGKILL if self.killed else self._exit_code)

    def signal(self, number: signal.Signals) -> None:
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and its process group."""
        if not self.ended.done():
            self.killed = True
            for kill in (os.kill, os.killpg):  # its group may be a moment away
                with contextlib.suppress(ProcessLookupError):
                    kill(self.pid, signal.SIGKILL)


async def watch_heartbeats(running: Mapping[int, ChildProcess], timeout_s: float) -> None:
    """Kill each process, by slot, that has sent no heartbeat for `timeout_s`. Never returns."""
    loop = asyncio.get_running_loop()
    tick_s, last = min(1.0, timeout_s / 4), loop.time()
    while True:
        await asyncio.sleep(tick_s)
        now = loop.time()
        pause_s, last = now - last - tick_s, now
        for child in list(running.values()):
            if pause_s > tick_s:
                # This process was stopped (a frozen container), and so were its children.
                child.last_heartbeat += pause_s
            silence_s = now - child.last_heartbeat
            if silence_s > timeout_s and not child.killed:
                log.error(
                    "supervisor.heartbeat_lost",
                    slot=child.slot,
                    pid=child.pid,
                    silence_s=round(silence_s, 1),
                )
                child.kill()


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
