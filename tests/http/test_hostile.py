"""A hostile receiver costs one named failure, little memory, and no more than the deadline."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trustme

from worker.http.client import HTTPReply, build_http_client, post_webhook
from worker.http.policy import EgressPolicy, parse_networks
from worker.http.transport import tls_context

pytestmark = pytest.mark.integration

LOOPBACK = EgressPolicy(parse_networks("127.0.0.0/8"))
TLS = ssl.create_default_context()
TIMEOUT_S, PATIENT_S = 0.4, 20.0
# A loaded machine may exceed the deadline by this. The receivers would hold an attempt forever.
SLACK_S = 15.0
DRIP_EVERY_S = 0.01
HEAD = b"HTTP/1.1 200 OK\r\n"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def drip(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Send small pieces forever, each within any limit of a single read."""
    while True:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(DRIP_EVERY_S)


async def header_drip(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    await drip(writer, b"x-drip: 1\r\n")


async def body_drip(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"content-length: 1000000\r\n\r\n")
    await drip(writer, b".")


async def chunk_drip(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    await drip(writer, b"1\r\n.\r\n")


async def endless_body(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"." * 65536 + b"\r\n")
        await writer.drain()


async def early_hints_flood(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 100)
        await writer.drain()


async def silence(reader: asyncio.StreamReader, _w: asyncio.StreamWriter) -> None:
    await reader.read()


async def huge_header(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"x-huge: " + b"a" * 5_000_000 + b"\r\n\r\n")
    await writer.drain()


async def many_headers(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"x-many: 1\r\n" * 200_000 + b"\r\n")
    await writer.drain()


async def early_close(_r: asyncio.StreamReader, _w: asyncio.StreamWriter) -> None:
    return


async def close_in_headers(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"content-le")


async def close_in_body(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"content-length: 100\r\n\r\nhalf")


async def not_http(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example.com ESMTP\r\n")


async def bad_chunk(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\nZZZ\r\n")


CASES: list[tuple[Script, set[str]]] = [
    (header_drip, {"timeout", "protocol"}),
    (body_drip, {"timeout"}),
    (chunk_drip, {"timeout"}),
    (endless_body, {"response_too_large"}),
    (early_hints_flood, {"protocol"}),
    (silence, {"timeout"}),
    (huge_header, {"protocol"}),
    (many_headers, {"protocol"}),
    (early_close, {"disconnected"}),
    (close_in_headers, {"disconnected", "protocol"}),
    (close_in_body, {"read"}),
    (not_http, {"protocol"}),
    (bad_chunk, {"read", "protocol"}),
]


@asynccontextmanager
async def receiver(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            await script(reader, writer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks)


async def post(url: str, timeout_s: float = TIMEOUT_S, **client_options: Any) -> HTTPReply:
    client = build_http_client(LOOPBACK, max_connections=4, **{"tls": TLS, **client_options})
    try:
        return await post_webhook(
            client, url, headers={}, body=b"{}", timeout_s=timeout_s,
            keep_bytes=1024, max_bytes=1_048_576,
        )  # fmt: skip
    finally:
        await client.aclose()


@pytest.mark.parametrize(("script", "errors"), CASES, ids=lambda v: getattr(v, "__name__", ""))
async def test_a_hostile_receiver_is_one_failure_within_the_limits(
    script: Script, errors: set[str]
) -> None:
    # What ends by something else than the timeout may take longer than that on a busy machine.
    timeout_s = TIMEOUT_S if "timeout" in errors else PATIENT_S
    async with receiver(script) as port:
        tracemalloc.start()
        try:
            reply = await post(f"http://127.0.0.1:{port}/", timeout_s)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert reply.error in errors
    assert reply.ms < (timeout_s + SLACK_S) * 1000
    assert len(reply.body) <= 1024
    # Both ends run in this process, so the sender's buffers count too.
    assert peak < 20_000_000


async def test_a_gzip_bomb_is_not_decompressed() -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024))

    async def script(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 500 x\r\ncontent-encoding: gzip\r\ncontent-length: {len(bomb)}\r\n\r\n"
        writer.write(head.encode() + bomb)
        await writer.drain()

    async with receiver(script) as port:
        tracemalloc.start()
        try:
            reply = await post(f"http://127.0.0.1:{port}/", timeout_s=10)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (reply.status, reply.error) == (500, "")
    assert reply.body == bomb[:1024]
    assert peak < 20_000_000


async def test_a_few_early_hints_before_the_response_are_accepted() -> None:
    async def script(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 5)
        writer.write(HEAD + b"content-length: 0\r\n\r\n")

    async with receiver(script) as port:
        assert (await post(f"http://127.0.0.1:{port}/", PATIENT_S)).status == 200


async def take(_r: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"content-length: 0\r\n\r\n")


async def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(served)
    async with receiver(take, served) as port:
        assert (await post(f"https://127.0.0.1:{port}/", PATIENT_S)).error == "tls"


async def test_a_certificate_for_another_name_is_refused(tmp_path: Any) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.example").configure_cert(served)
    trusting = tls_context(ca_file=str(tmp_path / "ca.pem"))
    async with receiver(take, served) as port:
        assert (await post(f"https://127.0.0.1:{port}/", PATIENT_S, tls=trusting)).error == "tls"


async def test_a_private_authority_and_a_client_certificate_are_used(tmp_path: Any) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "client.pem")
    )
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    authority.configure_trust(served)
    served.verify_mode = ssl.CERT_REQUIRED
    ca, client = str(tmp_path / "ca.pem"), str(tmp_path / "client.pem")
    async with receiver(take, served) as port:
        url = f"https://127.0.0.1:{port}/"
        with_one = await post(url, PATIENT_S, tls=tls_context(ca_file=ca, cert_file=client))
        without = await post(url, PATIENT_S, tls=tls_context(ca_file=ca))
    assert with_one.status == 200
    assert without.status is None
