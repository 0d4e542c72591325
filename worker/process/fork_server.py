"""
Forks the worker processes from one that has imported what they need.

The children share the memory of the imported modules and start within
milliseconds. A fork copies neither threads nor the state of a connection or of
an event loop, so this process has none: it imports, and waits for requests of
its supervisor (`worker.process.forks`). An operator's modules may start anything
when they are imported, so each child imports them itself.

Signals are for the supervisor and the children: a service manager that sends TERM
to all must not end this process, which reports how the children end. It ends when
its supervisor does. multiprocessing's fork server would end at that TERM, and
search the working directory for modules.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys

from worker.process.pipes import (
    ENDED,
    FORK_SERVER_FD,
    FORKED,
    HEARTBEAT_FD,
    PARENT_FD,
    REFUSED,
    inherited_socket,
)

_IGNORED = {signal.SIGTERM, signal.SIGINT, signal.SIGTSTP, signal.SIGHUP}


def fork_on_request() -> None:
    """
    Serve a supervisor's requests for processes; return in each process that was forked.

    Call this with everything imported, before anything is started or opened. Under no
    supervisor it returns at once. When the supervisor ends, so does this process.
    """
    control = inherited_socket(FORK_SERVER_FD)
    if control is not None:
        with control:
            _serve(control)


def _serve(control: socket.socket) -> None:
    """Fork at each request, and report each child's end. Return in the children."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    # A handler instead of SIG_IGN, which a child's exec would inherit.
    for number in (*_IGNORED, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    # The collector would write to the objects that the children share.
    gc.collect()
    gc.freeze()
    while True:
        ready, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _report_ended(control)
        if control.fileno() in ready and _fork(control):
            break
    os.close(wake_read)
    os.close(wake_write)


def _fork(control: socket.socket) -> bool:
    """Read a request and fork; return whether this is the new process."""
    request, fds, _, _ = socket.recv_fds(control, 1, 2)
    if not request:
        raise SystemExit(0)
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that meets the new process before its handlers are reset waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        pid = os.fork()
    except OSError as exc:
        _reply(control, REFUSED + b"%d" % (exc.errno or 0))
    else:
        if pid == 0:
            _become_child(*fds)
            return True
        _reply(control, FORKED + b"%d" % pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    for fd in fds:
        os.close(fd)
    return False


def _become_child(heartbeat_fd: int, parent_fd: int) -> None:
    # A session of its own, so that a terminal's Ctrl-C reaches the supervisor only.
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (*_IGNORED, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    os.environ[HEARTBEAT_FD] = str(heartbeat_fd)
    os.environ[PARENT_FD] = str(parent_fd)


def _report_ended(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _reply(control, ENDED + b"%d %d" % (pid, os.waitstatus_to_exitcode(status)))


def _reply(control: socket.socket, message: bytes) -> None:
    try:
        control.sendall(message + b"\n")
    except OSError:  # the supervisor ended
        raise SystemExit(0) from None
