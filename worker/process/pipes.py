"""The two pipes between a supervisor and its child: their variables, messages and descriptors."""

from __future__ import annotations

import contextlib
import os
import stat

# Names of the environment variables that carry the pipes' file descriptors.
HEARTBEAT_FD = "LETTA_SUPERVISOR_HEARTBEAT_FD"
PARENT_FD = "LETTA_SUPERVISOR_PARENT_FD"
# Messages of a child in its heartbeat pipe, one per line.
HEARTBEAT = b"heartbeat"
COMPLAINT = b"bad_configuration "


def send(fd: int, message: bytes) -> bool:
    """Write one message; return whether it was written."""
    # The pipe is full when the parent hangs, and broken when it died, which has its own watch.
    with contextlib.suppress(OSError):
        return os.write(fd, message + b"\n") > 0
    return False


def inherited_pipe(name: str) -> int | None:
    """Return the pipe that the variable names, or None. This process's children cannot use it."""
    fd = int(os.environ.pop(name, "-1"))
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            return None
        os.set_inheritable(fd, False)
    except OSError:
        return None
    return fd
