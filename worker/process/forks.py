"""
The supervisor's view of its fork server: start it, have it fork, hear how the children end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence

from cache.logs import get_logger
from worker.process.pipes import ENDED, FORK, FORK_SERVER_FD, FORKED, REFUSED
from worker.process.process import ChildProcess

log = get_logger(__name__)

_READ_BYTES = 65_536


class ForkServerEnded(Exception):
    """The fork server ended before it forked. `exit_code` is negative for a signal."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the fork server ended with {exit_code}")
        self.exit_code = exit_code


class ForkServer:
    """
    Forks children of one process that has imported what they need.

    It starts with the first fork, and anew when it has died. Its children survive it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._asked: tuple[int, int, asyncio.Future[ChildProcess]] | None = None
        self._children: dict[int, ChildProcess] = {}
        self._rest = b""
        self._is_warm = False
        self._is_ending = False

    async def fork(self, slot: int, read_end: int, *ends: int) -> ChildProcess:
        """
        Start a child that has `ends`: its heartbeat pipe's write end, the parent pipe's read end.

        Raises:
            OSError: there is no such program, or the system has no room for a process.
            ForkServerEnded: the program ended before it could fork, or shall not start any more.
        """
        async with self._turn:
            if self._process is None:
                if self._is_ending:
                    raise ForkServerEnded(-signal.SIGTERM)
                await self._start()
            forked: asyncio.Future[ChildProcess] = asyncio.get_running_loop().create_future()
            self._asked = slot, read_end, forked
            with contextlib.suppress(OSError):  # it has just ended; the reader notices
                socket.send_fds(self._control, [FORK], ends)
            return await forked

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env={**os.environ, FORK_SERVER_FD: str(theirs.fileno())},
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError:
            self._control.close()
            raise
        self._rest, self._is_warm = b"", False
        log.info("supervisor.fork_server_started", pid=self._process.pid)
        self._reading = loop.create_task(self._read())

    async def _read(self) -> None:
        """Take the replies until the fork server ends."""
        loop, process = asyncio.get_running_loop(), self._process
        assert process is not None  # noqa: S101
        with self._control, contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(self._control, _READ_BYTES):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._take(line)
        code = await process.wait()
        self._process = None
        if self._children:
            log.warning("supervisor.fork_server_ended", pid=process.pid, exit_code=code)
        for child in self._children.values():
            child.orphan()
        self._children.clear()
        if self._asked is not None and not self._asked[2].done():
            self._asked[2].set_exception(ForkServerEnded(code))

    def _take(self, reply: bytes) -> None:
        if reply.startswith(ENDED):
            pid, code = map(int, reply.removeprefix(ENDED).split())
            child = self._children.pop(pid, None)
            if child is not None:
                child.ended.set_result(code)
            return
        assert self._asked is not None  # noqa: S101
        slot, read_end, forked = self._asked
        self._is_warm = True
        if reply.startswith(FORKED):
            # Known from here on: the next line may be its end.
            pid = int(reply.removeprefix(FORKED))
            child = self._children[pid] = ChildProcess(pid, slot, read_end)
            forked.set_result(child)
        else:
            number = int(reply.removeprefix(REFUSED))
            forked.set_exception(OSError(number, os.strerror(number)))

    def give_up_start(self) -> None:
        """End a fork server that still imports, and start no other: nobody waits for it any more."""
        self._is_ending = True
        if self._process is not None and not self._is_warm:
            self._kill(self._process)

    async def close(self) -> None:
        """End it. It keeps nothing that could be lost."""
        if self._process is not None:
            self._kill(self._process)
            await self._reading

    @staticmethod
    def _kill(process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
