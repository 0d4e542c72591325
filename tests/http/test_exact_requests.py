"""What was given is what is sent: request line, headers and body, byte for byte."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from worker import InvalidWebhookURL
from worker.http.client import build_http_client, post_webhook
from worker.http.policy import EgressPolicy, parse_networks
from worker.http.urls import BadURL, read_url
from worker.queue.arguments import require_webhook_url
from worker.webhooks.headers import check_headers, is_value

TLS = ssl.create_default_context()
ASCII = "".join(map(chr, range(0x21, 0x7F)))
# Each was changed, refused or read differently by one of the libraries on the way.
TARGETS = [
    "/a%2Fb%2f%7e%7E~", "/%zz%", "/a/../b/./c//d", "/a?", "/?", "/?x", "/a?b?c", "/a;p=1;q?x=1;y=2",
    "/a+b?c+d%20e", "/a?q=%C3%BC&r=%c3%bc", "/a?=&&=", "/\\a\"<>^`{|}", "/a?token=a%3Db==", "/%00%0d%0a",
    "/a?x[]=1&x[]=2", "/%E2%82", "/a?redirect=http://b/?c=d",
]  # fmt: skip
KNOWN = (
    "accept", "authorization", "cache-control", "content-encoding", "content-type", "cookie", "date",
    "if-match", "origin", "referer", "traceparent",
)  # fmt: skip
OWN = st.from_regex(r"x-[a-z0-9!#$&'*+.^_`|~-]{1,12}", fullmatch=True)


class Recorder:
    """A server on loopback that keeps the bytes of every request."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(size))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def recorder() -> AsyncIterator[tuple[Recorder, str]]:
    found = Recorder()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        yield found, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def send(url: str, *, proxy: str | None = None, **more: Any) -> None:
    policy = EgressPolicy(parse_networks("127.0.0.0/8"))
    client = build_http_client(policy, max_connections=1, tls=TLS, proxy=proxy)
    options: dict[str, Any] = {
        "headers": {},
        "body": b"{}",
        "timeout_s": 5,
        "keep_bytes": 0,
        "max_bytes": 10,
    } | more
    try:
        reply = await post_webhook(client, require_webhook_url(url), **options)
    finally:
        await client.aclose()
    assert (reply.status, reply.error) == (200, "")


def line(request: bytes) -> bytes:
    return request.split(b"\r\n", 1)[0]


@pytest.mark.parametrize("target", TARGETS)
async def test_path_and_query_are_sent_as_they_were_given(target: str) -> None:
    async with recorder() as (found, address):
        await send(f"http://{address}{target}")
    assert line(found.requests[0]) == b"POST %s HTTP/1.1" % target.encode()


@pytest.mark.parametrize("target", ["/a%2fb?", "/a/../b?c=%7e"])
async def test_a_proxy_gets_the_url_as_it_was_given(target: str) -> None:
    async with recorder() as (found, address):
        await send(f"http://127.0.0.1{target}", proxy=f"http://{address}")
    assert line(found.requests[0]) == b"POST http://127.0.0.1%s HTTP/1.1" % target.encode()


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    target=st.text(st.sampled_from(ASCII) | st.characters(min_codepoint=0xA1), max_size=40),
    names=st.lists(st.sampled_from(KNOWN) | OWN, unique=True, max_size=8),
    value=st.text(st.sampled_from(ASCII + " \t"), max_size=60),
    body=st.binary(max_size=200),
)
def test_every_request_is_sent_as_it_was_given(
    target: str, names: list[str], value: str, body: bytes
) -> None:
    assume(target.isprintable() and is_value(value))
    headers = check_headers(dict.fromkeys(names, value))

    async def check() -> tuple[bytes, str]:
        async with recorder() as (found, address):
            await send(f"http://{address}/{target}", headers=headers, body=body)
            return found.requests[0], address

    request, _ = asyncio.run(check())
    head, _, sent = request.partition(b"\r\n\r\n")
    assert sent == body
    wanted = "/" + target.partition("#")[0]
    escaped = "".join(c if c.isascii() else quote(c, safe="") for c in wanted)
    assert line(request) == b"POST %s HTTP/1.1" % escaped.encode()
    lines = head.split(b"\r\n")
    for name in headers:
        assert f"{name}: {value}".encode() in lines


@given(st.text(st.sampled_from(ASCII), max_size=30), st.text(st.sampled_from(ASCII), max_size=30))
def test_a_url_that_is_accepted_is_read_by_everybody_alike(authority: str, rest: str) -> None:
    try:
        found = read_url(f"http://{authority}{rest}")
    except BadURL:
        return
    other = urlsplit(found.text)
    assert other.hostname == found.host.lower()
    assert (other.port or 80, other.username) == (found.port, None)
    assert read_url(found.text) == found


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://faß.de/", "https://xn--fa-hia.de/"),
        ("https://BÜCHER.example/", "https://xn--bcher-kva.example/"),
        ("https://日本。example/", "https://xn--wgv71a.example/"),
        ("https://ελλάς.example/", "https://xn--hxarsa0b.example/"),
        ("https://a.example:443/ü?q=é", "https://a.example/%C3%BC?q=%C3%A9"),
        ("https://a.example?x", "https://a.example/?x"),
        ("http://\uff11\uff12\uff17.0.0.1/", "http://127.0.0.1/"),
    ],
)
def test_unicode_is_converted_at_the_call(given: str, sent: str) -> None:
    assert require_webhook_url(given) == sent
    assert require_webhook_url(sent) == sent


@pytest.mark.parametrize(
    "host",
    [
        "", "a..b", ".a", "a" * 64, ".".join(["abc"] * 64), "☃.example", "a\u0378.example",
        "a%41.example", "1.2.3.999", "256.1.1.1", "1.2.3.4.5", "a b", "good\\@evil", "u@h", "[::1",
        "[::1%25eth0]", "[v1.a]", "h:0", "h:65536", "h:x", "-ü.example", "xn--ü.example",
    ],
)  # fmt: skip
def test_a_host_that_cannot_be_resolved_is_refused_at_the_call(host: str) -> None:
    with pytest.raises(InvalidWebhookURL, match="url is not a webhook URL: it "):
        require_webhook_url(f"https://{host}/hooks")


@given(st.text(st.sampled_from("0123789xXaf."), min_size=1, max_size=16))
def test_a_number_is_an_address_exactly_when_the_c_library_says_so(host: str) -> None:
    last = host.rpartition(".")[2]
    assume(last.isdigit() or last[:2].lower() == "0x")
    try:
        socket.inet_aton(host)
        known = True
    except OSError:
        known = False
    try:
        read_url(f"http://{host}/")
    except BadURL:
        assert not known
    else:
        assert known or not re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", last)


@pytest.mark.parametrize("value", ["Zoë", " a", "a ", "\ta", "a\n", "a\x7f", "a" * 2049])
def test_a_header_value_that_would_change_on_the_way_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="the value of 'x-a'"):
        check_headers({"x-a": value})


def test_more_headers_than_a_delivery_may_carry_are_refused() -> None:
    assert len(check_headers({f"x-{n}": "v" for n in range(32)})) == 32
    with pytest.raises(ValueError, match="at most 32"):
        check_headers({f"x-{n}": "v" for n in range(33)})


def test_a_header_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="given twice"):
        check_headers({"X-A": "1", "x-a": "2"})
