"""
The pipes and the socket between a supervisor, its fork server and its children: variables and
messages.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable

# Names of the environment variables that carry file descriptors.
HEARTBEAT_FD = "LETTA_SUPERVISOR_HEARTBEAT_FD"
PARENT_FD = "LETTA_SUPERVISOR_PARENT_FD"
FORK_SERVER_FD = "LETTA_SUPERVISOR_FORK_SERVER_FD"
# Messages of a child in its heartbeat pipe, one per line.
HEARTBEAT = b"heartbeat"
COMPLAINT = b"bad_configuration "
EXIT_CODE = b"exit_code "
# To the fork server: one byte, with the heartbeat pipe's write end and the parent pipe's read end.
FORK = b"f"
# Its replies, one per line: a new process's id; `errno`; an ended process's id and exit code.
FORKED = b"forked "
REFUSED = b"refused "
ENDED = b"ended "


def send(fd: int, message: bytes) -> bool:
    """Write one message; return whether it was written."""
    # The pipe is full when the parent hangs, and broken when it died, which has its own watch.
    with contextlib.suppress(OSError):
        return os.write(fd, message + b"\n") > 0
    return False


def inherited_pipe(name: str) -> int | None:
    """Return the pipe that the variable names, or None. This process's children cannot use it."""
    return _inherited(name, stat.S_ISFIFO)


def inherited_socket(name: str) -> socket.socket | None:
    """Return the socket that the variable names, or None. This process's children cannot use it."""
    fd = _inherited(name, stat.S_ISSOCK)
    return None if fd is None else socket.socket(fileno=fd)


def _inherited(name: str, is_kind: Callable[[int], bool]) -> int | None:
    fd = int(os.environ.pop(name, "-1"))
    try:
        if not is_kind(os.fstat(fd).st_mode):
            return None
        os.set_inheritable(fd, False)
    except OSError:
        return None
    return fd
