"""Clients that are slow, silent or many cost the web server nothing for long, and nobody else their answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from worker.web import protocol
from worker.web.address import Address
from worker.web.serving import listen, serve

pytestmark = pytest.mark.integration

REQUEST = b"GET /%s HTTP/1.1\r\nhost: localhost\r\n\r\n"
RELEASE: dict[str, asyncio.Event] = {}


async def app(scope: Any, receive: Any, send: Any) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": []}
    await send(start)
    if scope["path"] == "/wait":
        await RELEASE["reply"].wait()
    while scope["path"] == "/much" and not RELEASE["gone"].is_set():
        await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
        if await gone(receive):
            RELEASE["gone"].set()
    await send({"type": "http.response.body", "body": b"answered"})


async def gone(receive: Any) -> bool:
    try:
        async with asyncio.timeout(0):
            return bool((await receive())["type"] == "http.disconnect")
    except TimeoutError:
        return False


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    RELEASE.update(reply=asyncio.Event(), gone=asyncio.Event())
    end = asyncio.Event()
    with listen(Address("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(serve(app, listener, end))
        yield listener.getsockname()[:2]
        end.set()
        await task


@asynccontextmanager
async def connected(address: tuple[str, int], first: bytes = b"") -> AsyncIterator[Any]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(first)
    await writer.drain()
    try:
        yield reader
    finally:
        writer.transport.abort()


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes."""
    found = b""
    try:
        async with asyncio.timeout(30):
            while piece := await reader.read(65_536):
                found += piece
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"GET / HTTP/1.1\r\nho",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
    ],
)
async def test_a_request_that_does_not_arrive_ends_its_connection(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.1)
    async with connected(address, first) as reader:
        await rest_of(reader)


async def test_a_reply_that_takes_its_time_is_not_cut(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.1)
    async with connected(address, REQUEST % b"wait") as patient:
        async with connected(address) as silent:
            await rest_of(silent)  # ended, and so the other would have been
        RELEASE["reply"].set()
        assert b"answered" in await patient.readuntil(b"answered")


async def test_a_reply_that_nobody_reads_is_cut(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REPLY_S", 0.3)
    async with connected(address, REQUEST % b"much"), asyncio.timeout(30):
        await RELEASE["gone"].wait()


async def test_a_new_client_takes_the_place_of_the_most_silent(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MOST", 2)
    monkeypatch.setattr(protocol, "HEAD_S", 3600.0)  # silence alone ends none of them
    async with connected(address) as oldest, connected(address, REQUEST % b"wait") as busy:
        async with connected(address, REQUEST % b"") as reader:
            await asyncio.wait_for(reader.readuntil(b"answered"), 30)
        assert await rest_of(oldest) == b""
        RELEASE["reply"].set()
        await asyncio.wait_for(busy.readuntil(b"answered"), 30)


async def test_a_head_of_any_length_is_refused(address: tuple[str, int]) -> None:
    async with connected(address, b"GET /?" + b"a" * 200_000) as reader:
        assert (await rest_of(reader))[:12] in (b"HTTP/1.1 400", b"")
