"""Runs a Valkey that can be killed, frozen and restarted at the same address."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache.connection.embedded import server_binary
from tests.support.wait import eventually_sync


class FragileServer:
    """A server on a unix socket with an append-only file: acknowledged writes survive a kill."""

    def __init__(self, home: Path, *options: str) -> None:
        self._home = home
        self._options = options
        # Socket paths are limited to about 100 bytes.
        self._directory = tempfile.TemporaryDirectory(prefix="frag-")
        self._socket = Path(self._directory.name) / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def path(self) -> str:
        return str(self._socket)

    def start(self) -> None:
        """Start the server and return when it answers."""
        port = [] if "--port" in self._options else ["--port", "0"]
        words = [*port, "--unixsocket", str(self._socket), "--dir", str(self._home)]
        words += ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", *self._options]
        with (self._home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(server_binary()), *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        eventually_sync(self._answers)

    def kill(self) -> None:
        """Kill the server like a crash: nothing is saved."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def freeze(self) -> None:
        """Stop the process: its kernel accepts connections, but it answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _answers(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(self._socket))
            client.sendall(b"*1\r\n$4\r\nPING\r\n")
            return client.recv(64).startswith(b"+PONG")
        return False

    def end(self) -> None:
        self.thaw()
        self.kill()
        self._directory.cleanup()


@contextmanager
def fragile_server(home: Path, *options: str) -> Iterator[FragileServer]:
    with running(FragileServer(home, *options)) as server:
        yield server


@contextmanager
def running(server: FragileServer) -> Iterator[FragileServer]:
    server.start()
    try:
        yield server
    finally:
        server.end()
