"""A provider's client whose server answers with given bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.support.llm import ENDPOINT
from tests.support.servers import raw_server
from worker.http.client import build_http_client
from worker.http.policy import EgressPolicy, parse_networks
from worker.llm.grouping import Group
from worker.llm.providers import AnthropicProvider, OpenAIProvider

LIMIT = 1_000_000
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes, *headers: str, status: str = "200 OK") -> Handler:
    """A server with one reply to everything, which counts the bytes that were read."""
    head = "\r\n".join([f"HTTP/1.1 {status}", "connection: close", *headers, "", ""]).encode()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        for at in range(0, len(body), 65_536):
            writer.write(body[at : at + 65_536])
            await writer.drain()
        writer.close()

    return handle


@asynccontextmanager
async def asked(name: str, handler: Handler, **more: Any) -> AsyncIterator[Any]:
    """A provider client whose server is the handler."""
    kind = OpenAIProvider if name == "openai" else AnthropicProvider
    client = build_http_client(EgressPolicy(parse_networks("127.0.0.0/8")), max_connections=4)
    async with raw_server(handler) as port, client:
        yield kind(
            client,
            base_url=f"http://127.0.0.1:{port}",
            api_key="k",
            timeout_s=20,
            max_bytes=LIMIT,
            **more,
        )


def group_of(name: str) -> Group:
    return Group(name, ENDPOINT[name], "m")
