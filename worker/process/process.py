"""
The parent's view of one worker process: spawn it, read its pipe, signal it, kill it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence

from worker.process.pipes import COMPLAINT, HEARTBEAT, HEARTBEAT_FD, PARENT_FD

_PIPE_BYTES = 65_536


class ChildProcess:
    """A spawned process and the messages of its heartbeat pipe. Times are the loop's."""

    def __init__(self, slot: int, process: asyncio.subprocess.Process, pipe: int) -> None:
        self.slot = slot
        self.process = process
        self.pid = process.pid
        self.complaint = ""  # why its configuration is bad, one line
        self.ready = False  # it has sent a heartbeat, so its signal handlers are set
        self.killed = False
        self.started_at = self.last_heartbeat = asyncio.get_running_loop().time()
        self._pipe = pipe
        self._rest = b""

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
        return bool(data)

    def signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            # Not through the process object: it calls waitpid first, which takes the
            # exit code away from the event loop's child watcher.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and its process group."""
        if self.process.returncode is None:
            self.killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


async def spawn(
    command: Sequence[str], slot: int, read_end: int, write_end: int, parent_pipe: int
) -> ChildProcess:
    """
    Start a process that inherits the heartbeat pipe's write end and the parent pipe's read end.

    Raises:
        OSError: there is no such program, or the system has no room for it.
    """
    descriptors = {HEARTBEAT_FD: str(write_end), PARENT_FD: str(parent_pipe)}
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **descriptors},
        pass_fds=(write_end, parent_pipe),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    return ChildProcess(slot, process, read_end)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
