"""No spelling, name, redirect or change of records makes a TCP connection to a forbidden address."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.names import Zone, name_server
from worker.http.client import HTTPReply, build_http_client, post_webhook
from worker.http.policy import EgressPolicy, parse_networks

pytestmark = pytest.mark.integration

# Literal addresses, in every spelling a URL or the C library takes.
SPELLINGS = [
    "127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001",
    "0x7f.0.0.1", "0x7f.1", "0x7F.0x0.0x0.0x1", "017700000001", "0177.0.0.1", "0177.1",
    "00000177.0.0.1", "127.0.0.1%20", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "\uff11\uff12\uff17.0.0.1",
    "①②⑦.⓪.⓪.①", "127。0。0。1", "0", "0.0.0.0", "0x0", "000", "[::]", "[::1]", "[0:0:0:0:0:0:0:1]",
    "[::0001]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]",
    "[::127.0.0.1]", "[::7f00:1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[64:ff9b:1::127.0.0.1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]", "10.0.0.1", "10.1", "167772161", "172.16.0.1",
    "172.31.255.255", "192.168.0.1", "192.168.1", "3232235521", "169.254.169.254", "2852039166",
    "0xa9fea9fe", "0xa9.0xfe.0xa9.0xfe", "169.254.43518", "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]", "168.63.129.16", "100.64.0.1", "100.100.100.200", "192.0.0.192",
    "192.88.99.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "[fe80::1]", "[fe80::1%25eth0]", "[fc00::1]", "[fd00:ec2::254]", "[fec0::1]", "[ff02::1]",
    "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[100::1]", "[2001:20::1]",
]  # fmt: skip
# Addresses that a name may resolve to.
ANSWERS = [
    "127.0.0.1", "10.0.0.1", "172.20.0.1", "192.168.0.1", "169.254.169.254", "168.63.129.16",
    "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "::", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1",
    "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "fe80::1", "fd00::1",
    "fec0::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "3fff::1", "5f00::1",
]  # fmt: skip


# Reading the system's authorities takes longer than most of these tests.
TLS = ssl.create_default_context()


@pytest.fixture(scope="module")
def names() -> Iterator[tuple[Zone, Any]]:
    with name_server() as found:
        yield found


_listeners: list[list[str]] = []


def _audited(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: the interpreter calls it for every connect, whichever library makes it."""
    if event == "socket.connect" and _listeners and arguments[0].type & socket.SOCK_STREAM:
        for connections in _listeners:
            connections.append(arguments[1][0])


# An audit hook cannot be removed; it does nothing while no test listens.
sys.addaudithook(_audited)


@dataclass
class Net:
    """A guarded client, and all TCP connections that it started."""

    client: Any
    connections: list[str] = field(default_factory=list)

    async def post(self, url: str, timeout_s: float = 5) -> HTTPReply:
        return await post_webhook(
            self.client, url, headers={}, body=b"{}", timeout_s=timeout_s,
            keep_bytes=64, max_bytes=4096,
        )  # fmt: skip


@asynccontextmanager
async def net(policy: EgressPolicy | None = None, lookup: Any = None) -> AsyncIterator[Net]:
    client = build_http_client(policy or EgressPolicy(), max_connections=10, lookup=lookup, tls=TLS)
    found = Net(client)
    _listeners.append(found.connections)
    try:
        yield found
    finally:
        _listeners.remove(found.connections)
        await client.aclose()


@asynccontextmanager
async def answering(host: str, reply: bytes) -> AsyncIterator[int]:
    """A server that gives every request the same bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def test_the_table_has_enough_spellings() -> None:
    assert len(set(SPELLINGS)) >= 60
    assert len(SPELLINGS) == len(set(SPELLINGS))


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_spelling_of_a_forbidden_address_is_connected_to(host: str) -> None:
    async with net() as out:
        reply = await out.post(f"http://{host}:8123/")
        assert (reply.status, reply.body) == (None, b"")
        assert reply.error in {"target_forbidden", "invalid_url", "dns", "resolver_unavailable"}
        assert out.connections == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "ip6-localhost", "ⓛocalhost"])
async def test_no_local_name_is_connected_to(host: str) -> None:
    async with net() as out:
        reply = await out.post(f"http://{host}:8123/")
        assert reply.status is None
        assert out.connections == []


@pytest.mark.parametrize("address", ANSWERS)
async def test_no_name_leads_to_a_forbidden_address(address: str, names: tuple[Zone, Any]) -> None:
    zone, lookup = names
    name = f"{address.replace(':', '-')}.evil.test"
    zone.answers[name] = [[address]]
    async with net(lookup=lookup) as out:
        reply = await out.post(f"http://{name}:8123/")
        assert (reply.error, reply.permanent) == ("target_forbidden", True)
        assert out.connections == []


async def test_one_forbidden_answer_among_good_ones_refuses_the_name(
    names: tuple[Zone, Any],
) -> None:
    zone, lookup = names
    zone.answers["mixed.test"] = [["8.8.8.8", "10.0.0.1", "1.1.1.1"]]
    async with net(lookup=lookup) as out:
        assert (await out.post("http://mixed.test:8123/")).error == "target_forbidden"
        assert out.connections == []


async def test_a_name_that_changes_is_connected_at_its_checked_address(
    names: tuple[Zone, Any],
) -> None:
    policy = EgressPolicy(parse_networks("127.0.0.1/32"))
    zone, lookup = names
    zone.answers["rebind.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    async with answering("127.0.0.1", OK) as port, net(policy, lookup) as out:
        first = await out.post(f"http://rebind.test:{port}/")
        assert first.status == 200
        asked = [kind for name, kind in zone.asked if name == "rebind.test"]
        assert asked == ["A", "AAAA"]
        second = await out.post(f"http://rebind.test:{port}/")
        assert second.error == "target_forbidden"
        assert out.connections == ["127.0.0.1"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("allowed", ["127.0.0.1/32", "127.0.0.0/8"])
async def test_a_redirect_is_not_followed_wherever_it_leads(status: int, allowed: str) -> None:
    policy = EgressPolicy(parse_networks(allowed))
    async with answering("127.0.0.2", OK) as target:
        location = f"HTTP/1.1 {status} x\r\nlocation: http://127.0.0.2:{target}/\r\n\r\n"
        async with answering("127.0.0.1", location.encode()) as port, net(policy) as out:
            reply = await out.post(f"http://127.0.0.1:{port}/")
            assert reply.status == status
            assert out.connections == ["127.0.0.1"]


async def test_the_socket_factory_checks_the_address_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # However the host was parsed before, the socket has the address.
    monkeypatch.setattr("worker.http.transport.is_address", lambda _host: False)
    async with net() as out:
        reply = await out.post("http://127.0.0.1:8123/")
        assert reply.error == "target_forbidden"
        assert out.connections == []


@pytest.mark.parametrize("port", [22, 25, 6379, 11211])
async def test_ports_of_other_protocols_are_refused(port: int) -> None:
    async with net(EgressPolicy(parse_networks("127.0.0.0/8"))) as out:
        reply = await out.post(f"http://127.0.0.1:{port}/")
        assert reply.error == "target_forbidden"
        assert out.connections == []


async def test_only_the_ports_of_a_list_are_connected_to() -> None:
    async with answering("127.0.0.1", OK) as port, answering("127.0.0.1", OK) as other:
        policy = EgressPolicy(parse_networks("127.0.0.1/32"), ports=frozenset({port}))
        async with net(policy) as out:
            assert (await out.post(f"http://127.0.0.1:{port}/")).status == 200
            assert (await out.post(f"http://127.0.0.1:{other}/")).error == "target_forbidden"
            assert len(out.connections) == 1


async def test_an_allowed_host_may_be_private_and_others_may_not(
    names: tuple[Zone, Any],
) -> None:
    zone, lookup = names
    hosts = ("hooks.internal", "a.svc.local", "other.internal", "metadata.svc.local")
    for name in hosts[:3]:
        zone.answers[name] = [["127.0.0.1"]]
    zone.answers[hosts[3]] = [["169.254.169.254"]]
    policy = EgressPolicy(hosts=("hooks.internal", "*.svc.local"))
    async with answering("127.0.0.1", OK) as port, net(policy, lookup) as out:
        replies = [await out.post(f"http://{name}:{port}/") for name in hosts]
        assert [r.status for r in replies] == [200, 200, None, None]
        assert [r.error for r in replies[2:]] == ["target_forbidden"] * 2
        assert out.connections == ["127.0.0.1"] * 2


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering("127.0.0.1", OK) as port, answering("127.0.0.2", OK) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.2:{proxy}")
        async with net(EgressPolicy(parse_networks("127.0.0.0/8"))) as out:
            assert (await out.post(f"http://127.0.0.1:{port}/")).status == 200
            assert out.connections == ["127.0.0.1"]


async def test_only_the_egress_proxy_is_connected_and_targets_are_checked(
    names: tuple[Zone, Any],
) -> None:
    zone, lookup = names
    zone.answers["good.test"], zone.answers["evil.test"] = [["8.8.8.8"]], [["10.0.0.1"]]
    async with answering("127.0.0.1", OK) as port:
        client = build_http_client(
            EgressPolicy(),
            max_connections=10,
            lookup=lookup,
            tls=TLS,
            proxy=f"http://127.0.0.1:{port}",
        )
        out = Net(client)
        assert (await out.post("http://good.test/")).status == 200
        assert (await out.post("http://evil.test/")).error == "target_forbidden"
        assert (await out.post("http://10.0.0.1/")).error == "target_forbidden"
        await client.aclose()


async def test_an_egress_proxy_gets_its_credentials_with_every_request() -> None:
    credentials: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(2)
                credentials.append(re.findall(r"proxy-authorization: (.*)\r\n", head)[0])
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = build_http_client(
            EgressPolicy(), max_connections=1, tls=TLS, proxy=f"http://me:pass%40@127.0.0.1:{port}"
        )
        out = Net(client)
        statuses = [(await out.post("http://8.8.8.8/")).status for _ in range(2)]
        await client.aclose()
    assert statuses == [200, 200]
    # "me:pass@"; the server lower-cases it.
    assert credentials == ["basic " + base64.b64encode(b"me:pass@").decode().lower()] * 2


async def test_an_unreachable_name_server_is_internal_if_no_name_resolves() -> None:
    away = {"lost.test"}

    async def lookup(host: str, port: int) -> list[Any]:
        if host in away:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    policy = EgressPolicy(parse_networks("127.0.0.1/32"))
    async with answering("127.0.0.1", OK) as port, net(policy, lookup) as out:
        first = await out.post(f"http://lost.test:{port}/")
        assert (first.error, first.internal) == ("resolver_unavailable", True)
        assert (await out.post(f"http://well.test:{port}/")).status == 200
        second = await out.post(f"http://lost.test:{port}/")
        assert (second.error, second.internal) == ("dns", False)
