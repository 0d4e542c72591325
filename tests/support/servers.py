"""Runs special Valkey servers on loopback ports until the end of a block."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from cache.connection.embedded import server_binary
from tests.support.wait import eventually_sync

# Below the range that the system gives to clients and to servers on port 0 (from 32,768): a port
# from that range could be taken between this look and the start of its server. For the same
# reason each process of a parallel run has ports of its own.
_PROCESSES = 8
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
_RANGE = range(15_000 + _PROCESS, 32_000, _PROCESSES)
_PORTS = iter(random.SystemRandom().sample(_RANGE, len(_RANGE)))


def free_port() -> int:
    """Return a TCP port of the loopback address that nothing uses and no test was given before."""
    for port in _PORTS:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def answers(port: int, *, tls: bool = False) -> bool:
    """Return whether a server on the port answers PING or asks for a password; by TLS, is there."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as client:
        if tls:
            return True
        client.sendall(b"*1\r\n$4\r\nPING\r\n")
        return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    return False


@contextmanager
def valkey(home: Path, *arguments: str, port: int | None = None) -> Iterator[int]:
    """Run a valkey-server with these command line options on a TCP port. Yield the port."""
    chosen = port or free_port()
    home.mkdir(parents=True, exist_ok=True)
    command = [str(server_binary()), *arguments, "--port", str(chosen), "--dir", str(home)]
    if "--cluster-enabled" in arguments:
        # By default it is the port + 10,000, which the system may have given to somebody.
        command += ["--cluster-port", str(free_port())]
    if "--sentinel" not in arguments:
        command += ["--save", "", *([] if "--bind" in arguments else ["--bind", "127.0.0.1"])]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        eventually_sync(lambda: process.poll() is not None or answers(chosen))
        assert process.poll() is None, (home / "server.log").read_text()
        yield chosen
    finally:
        process.terminate()
        process.wait(10)


@asynccontextmanager
async def tls_in_front(
    socket_path: str, certificate: ssl.SSLContext, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Run a TLS listener that forwards to a unix socket. Yield its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(socket_path)
        for pair in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(forward(*pair))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, host, 0, ssl=certificate)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@asynccontextmanager
async def raw_server(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    host: str | None = "127.0.0.1",
    certificate: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Run a TCP or TLS server with one coroutine per connection. Yield its port; close all at the end."""
    running: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await handle(reader, writer)
        finally:
            writer.close()
            running.discard(task)
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, host, 0, ssl=certificate)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        tasks = list(running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command with a time limit. Return its exit code and output."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, **options
    )
    return done
