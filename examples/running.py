"""
Runs an example with one worker process, on LETTA_REDIS_URL or else an embedded server.

In production `letta-workers run`, a process manager or a container starts the
workers. An example starts one itself, so that it is a single command.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from letta_redis import open_queue

_STOP_DEADLINE_S = 20.0

# What the jobs of the worker have reported, for `main` to wait for.
reported: asyncio.Queue[str] = asyncio.Queue()


def run(main: Callable[[], Awaitable[None]], *, workers: bool = True, **settings: Any) -> None:
    """
    Run `main` until it returns.

    `settings` become LETTA_... variables of this process and of the worker;
    variables that are already set take precedence.
    """
    with tempfile.TemporaryDirectory() as home:
        values = {"redis_url": f"embedded://{home}/valkey", "worker_log_level": "ERROR", **settings}
        for name, value in values.items():
            os.environ.setdefault(f"LETTA_{name.upper()}", str(value))
        os.environ["EXAMPLE_SOCKET"] = f"{home}/reports"
        asyncio.run(_run(main, workers=workers))


async def _run(main: Callable[[], Awaitable[None]], *, workers: bool) -> None:
    # The open queue keeps the embedded server running for the worker and for `main`.
    async with open_queue():
        if not workers:
            await main()
            return
        async with await asyncio.start_unix_server(_receive, os.environ["EXAMPLE_SOCKET"]):
            with worker_process():
                await main()


async def report(line: str) -> None:
    """Send a line from a job to `main`, which gets it from `reported`."""
    _, writer = await asyncio.open_unix_connection(os.environ["EXAMPLE_SOCKET"])
    writer.write(line.encode())
    writer.close()
    await writer.wait_closed()


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reported.put_nowait((await reader.read()).decode())
    writer.close()


@contextmanager
def worker_process() -> Iterator[None]:
    """Run `letta-workers run --count 1` until the block ends."""
    command = Path(sys.executable).with_name("letta-workers")
    process = subprocess.Popen([command, "run", "--count", "1"], start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free loopback port; yields its base URL."""
    import uvicorn  # most examples serve nothing

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        # The socket listens already, so a request waits until the application has started.
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()
