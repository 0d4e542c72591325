"""Runs the Letta server with the plug-in, and a model server for it, as processes on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.letta.postgres import ROOT
from tests.support.servers import free_port
from tests.support.wait import eventually_sync

# Importing and starting Letta takes a minute on an idle machine.
_START_S = 900


@dataclass(slots=True)
class Server:
    """A running Letta server."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path

    def log(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)


@contextmanager
def letta_server(home: Path, *, plain: bool = False, **environment: str) -> Iterator[Server]:
    """
    Run a Letta server in this directory, with these variables, until the block ends.

    Args:
        plain: `letta server`, without the plug-in.
    """
    port = free_port()
    command = [str(Path(sys.executable).with_name("letta"))]
    if not plain:
        command = [sys.executable, "-m", "letta_redis"]
    command += ["server", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, home, "server.log", environment) as process:
        server = Server(process, f"http://127.0.0.1:{port}", home)
        _wait(server, "/v1/health/", _START_S)
        yield server


@contextmanager
def model_server(home: Path) -> Iterator[str]:
    """Run the model server. Yields its base URL for OpenAI's client."""
    port = free_port()
    command = [sys.executable, "-m", "tests.letta.model_server", str(port)]
    with running(command, home, "model.log", {}) as process:
        url = f"http://127.0.0.1:{port}"
        _wait(Server(process, url, home), "/v1/models", 60)
        yield f"{url}/v1"


@contextmanager
def running(
    command: list[str], home: Path, log: str, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("LETTA_")}
    variables |= {"PYTHONPATH": str(ROOT), "LETTA_DIR": str(home), **environment}
    with (home / log).open("wb") as output:
        process = subprocess.Popen(
            command, cwd=home, env=variables, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
        process.kill()
        process.wait(10)


def _wait(server: Server, path: str, deadline_s: float) -> None:
    """Return when the server answers. One client for all tries: making one costs more than a try."""
    with httpx.Client(base_url=server.url, timeout=5) as client:
        eventually_sync(lambda: _answers(server, client, path), deadline_s=deadline_s)


def _answers(server: Server, client: httpx.Client, path: str) -> bool:
    if server.process.poll() is not None:
        raise RuntimeError(f"ended with {server.process.returncode}: {server.log()[-2000:]}")
    with suppress(httpx.TransportError):
        return client.get(path).is_success
    return False
