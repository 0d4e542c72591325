"""The status of a response is known once its status line was read, whatever is odd after it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.http.client import GuardedClient, HTTPReply, build_http_client, post_webhook
from worker.http.policy import EgressPolicy, parse_networks
from worker.http.response import StatusLine
from worker.webhooks.policy import Outcome

pytestmark = pytest.mark.integration

LOOPBACK = EgressPolicy(parse_networks("127.0.0.0/8"))
TLS = ssl.create_default_context()
LINE = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"content-length: 0\r\n\r\n"
# What follows a status line that says 200. Each is a webhook that was taken.
ODD: dict[str, bytes] = {
    "a header of 9,000 bytes": b"x: " + b"x" * 9_000 + b"\r\n" + EMPTY,
    "a header of 200,000 bytes": b"x: " + b"x" * 200_000 + b"\r\n" + EMPTY,
    "500 headers": b"x: 1\r\n" * 500 + EMPTY,
    "no colon": b"not a header\r\n" + EMPTY,
    "no name": b": x\r\n" + EMPTY,
    "a space in a name": b"a b: x\r\n" + EMPTY,
    "NUL in a value": b"x: a\0b\r\n" + EMPTY,
    "not UTF-8": b"x: \xff\xfe\r\n" + EMPTY,
    "a folded value": b"x: a\r\n b\r\n" + EMPTY,
    "bare line feeds": b"x: a\ncontent-length: 0\n\n",
    "a length that is no number": b"content-length: many\r\n\r\n",
    "a negative length": b"content-length: -1\r\n\r\n",
    "two lengths": b"content-length: 0\r\ncontent-length: 5\r\n\r\n",
    "length and chunks": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a shorter body": b"content-length: 100\r\n\r\nhalf",
    "a longer body": b"content-length: 1\r\n\r\nmore than that",
    "a bad chunk": b"transfer-encoding: chunked\r\n\r\nZZZ\r\n",
    "a missing chunk": b"transfer-encoding: chunked\r\n\r\n5\r\nhe",
    "an unknown coding": b"transfer-encoding: none\r\n\r\n",
    "no gzip": b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
    "a body over the limit": b"content-length: 9000\r\n\r\n" + b"x" * 9000,
    "an unasked upgrade": b"connection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "an odd cookie": b"set-cookie: =;=,\r\n" + EMPTY,
    "an odd charset": b"content-type: text/x; charset=\r\n" + EMPTY,
    "the end of the connection": b"",
    "half a header": b"content-le",
}


@asynccontextmanager
async def answering(*parts: bytes, hold: bool = False) -> AsyncIterator[str]:
    """Answer every request with these bytes, then close, or `hold` the connection."""
    held = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n{}")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if hold:
                await held.wait()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        finally:
            held.set()


async def posted(client: GuardedClient, url: str, timeout_s: float = 5) -> HTTPReply:
    return await post_webhook(
        client, url, headers={}, body=b"{}", timeout_s=timeout_s, keep_bytes=64, max_bytes=4096
    )


async def post(url: str, timeout_s: float = 5, proxy: str | None = None) -> HTTPReply:
    client = build_http_client(LOOPBACK, max_connections=4, tls=TLS, proxy=proxy)
    try:
        return await posted(client, url, timeout_s)
    finally:
        await client.aclose()


def taken(reply: HTTPReply) -> bool:
    return Outcome(reply.status, reply.error, reply.permanent, reply.internal).is_success


@pytest.mark.parametrize("rest", ODD.values(), ids=ODD)
async def test_a_2xx_is_taken_whatever_follows_its_status_line(rest: bytes) -> None:
    async with answering(LINE + rest) as url:
        reply = await post(url)
    assert (reply.status, reply.permanent, reply.internal) == (200, False, False)
    assert taken(reply)


@pytest.mark.parametrize("rest", [b"", b"x: 1\r\n", b"content-length: 9\r\n\r\nha"])
async def test_a_2xx_is_taken_when_the_rest_never_comes(rest: bytes) -> None:
    async with answering(LINE + rest, hold=True) as url:
        reply = await post(url, timeout_s=1.5)
    assert (reply.status, reply.error) == (200, "timeout")
    assert taken(reply)


@pytest.mark.parametrize("status", [302, 404, 410, 429, 503])
async def test_the_record_has_the_status_that_was_seen(status: int) -> None:
    async with answering(b"HTTP/1.1 %d Oh\r\nno colon\r\n\r\n" % status) as url:
        reply = await post(url)
    assert (reply.status, taken(reply)) == (status, False)


async def test_a_long_header_hides_no_retry_after() -> None:
    long = b"content-security-policy: " + b"x" * 9_000 + b"\r\nretry-after: 7\r\n"
    async with answering(b"HTTP/1.1 429 Slow\r\n" + long + EMPTY) as url:
        reply = await post(url)
    assert (reply.status, reply.error, reply.retry_after) == (429, "", "7")


@pytest.mark.parametrize(
    "head",
    [b"", b"220 mail ESMTP\r\n", b"HTTP/1.1 2000 OK\r\n", b"HTTP/1.1 20\r\n", b"HTTP/1.1 200 OK"],
)
async def test_without_a_status_line_nothing_is_taken(head: bytes) -> None:
    async with answering(head) as url:
        reply = await post(url)
    assert (reply.status, taken(reply)) == (None, False)


async def test_a_proxys_answer_to_connect_is_not_the_receivers() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await reader.read(1)  # the receiver's TLS never comes
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        reply = await post("https://127.0.0.1:9/", proxy=proxy)
    assert (reply.status, taken(reply)) == (None, False)


async def test_a_status_does_not_outlive_its_request() -> None:
    answers = [LINE + EMPTY, b""]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answers:
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(answers.pop(0))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        client = build_http_client(LOOPBACK, max_connections=1, tls=TLS)
        try:
            first, second = await posted(client, url), await posted(client, url)
        finally:
            await client.aclose()
    assert (first.status, second.status, second.error) == (200, None, "disconnected")


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(status=st.integers(200, 299), rest=st.binary(max_size=200), cut=st.integers(1, 40))
def test_a_2xx_is_taken_before_any_bytes(status: int, rest: bytes, cut: int) -> None:
    async def check() -> HTTPReply:
        data = b"HTTP/1.1 %d OK\r\n" % status + rest
        async with answering(data[:cut], data[cut:]) as url:
            return await post(url)

    reply = asyncio.run(check())
    assert (reply.status, taken(reply)) == (status, True)


@given(
    status=st.integers(200, 599),
    early=st.lists(st.sampled_from([100, 102, 103]), max_size=5),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=9),
    end=st.sampled_from([b"\r\n", b"\n"]),
)
def test_the_final_status_is_found_in_any_pieces(
    status: int, early: list[int], sizes: list[int], end: bytes
) -> None:
    heads = [b"HTTP/1.1 %d x%slink: </a>%s%s" % (one, end, end, end) for one in early]
    data, line, turn = b"".join(heads) + b"HTTP/1.1 %d%s" % (status, end), StatusLine(), 0
    while data:
        size = sizes[turn % len(sizes)]
        line.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert line.status == status
