"""Runs workers, which have an environment of their own, and a receiver of webhooks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@contextmanager
def workers(redis_url: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """One worker in the workers' own environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LETTA_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "LETTA_REDIS_URL": redis_url,
        "LETTA_WORKER_COUNT": "1",
        "LETTA_WORKER_LOG_LEVEL": "WARNING",
        "LETTA_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
        **{f"LETTA_{name.upper()}": value for name, value in settings.items()},
    }
    command = [str(ROOT / ".venv/bin/python"), "-m", "worker", "run"]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=sys.stderr.fileno())
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass(slots=True)
class Receiver:
    """
    A small HTTP server that takes every POST and answers with `status`.

    Attributes:
        answers: while it is not set, a POST gets no answer.
        answered: an answer was sent.
    """

    url: str = ""
    status: int = 200
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[tuple[dict[str, str], Any]] = field(default_factory=list)

    def ids(self) -> list[str]:
        return [headers.get("webhook-id", "") for headers, _ in self.got]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in headers.items()}
            body = await reader.readexactly(int(headers["content-length"]))
            self.got.append((headers, json.loads(body)))
            await self.answers.wait()
            writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n" % self.status)
            writer.write(b"connection: close\r\n\r\n")
            await writer.drain()
            self.answered.set()
        finally:
            writer.close()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    made.answers.set()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        yield made
