"""Runs an ASGI app in its own process, and starts such processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

_START_DEADLINE_S = 20.0


def serve(app: ASGIApp) -> None:
    """
    Serve on a free loopback port until standard input closes, so that no server outlives its owner.

    The first line on standard output is JSON: {"port": 12345}.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=30
        )
    )
    # The socket listens already, so the reader of this line may connect at once.
    try:
        os.write(1, json.dumps({"port": listener.getsockname()[1]}).encode() + b"\n")
    except BrokenPipeError:  # the owner has gone meanwhile
        listener.close()
        return
    asyncio.run(_serve_until_eof(server, listener))


async def _serve_until_eof(server: uvicorn.Server, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    owner_gone = asyncio.create_task(reader.read())
    await asyncio.wait({serving, owner_gone}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    owner_gone.cancel()
    await serving


@contextlib.contextmanager
def running(module: str, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Start `python -m module`, which calls `serve`; yield its base URL, then end it."""
    process = subprocess.Popen(  # noqa: S603  (our own module)
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{module} exited with code {process.wait()} before it listened; see its standard error"
            )
        yield f"http://127.0.0.1:{json.loads(line)['port']}"
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(_START_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
