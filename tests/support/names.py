"""Runs a real name server on loopback with the answers of a test, and a lookup that uses it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from dnslib import AAAA, QTYPE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSLogger, DNSServer


class Zone(BaseResolver):  # type: ignore[misc]  # dnslib has no types
    """
    Answers from `answers[name]`, a list of address lists: the n-th question for a name
    gets the n-th list, later ones the last. `asked` records every question.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[Sequence[str]]] = {}
        self.asked: list[tuple[str, str]] = []

    def resolve(self, request: Any, _handler: Any) -> Any:
        reply = request.reply()
        name, kind = str(request.q.qname).rstrip("."), QTYPE[request.q.qtype]
        asked_before = sum((name, kind) == asked for asked in self.asked)
        self.asked.append((name, kind))
        lists = self.answers.get(name, [[]])
        for text in lists[min(asked_before, len(lists) - 1)]:
            version = ip_address(text).version
            if kind == ("A" if version == 4 else "AAAA"):
                data = A(text) if version == 4 else AAAA(tuple(ip_address(text).packed))
                reply.add_answer(RR(name, request.q.qtype, rdata=data, ttl=0))
        return reply


@contextmanager
def name_server() -> Iterator[tuple[Zone, Any]]:
    """Yield the zone and a lookup (`worker.http.resolver.Lookup`) that queries it over UDP."""
    zone = Zone()
    server = DNSServer(zone, address="127.0.0.1", port=0, logger=DNSLogger("-request,-reply"))
    server.start_thread()
    port = server.server.server_address[1]

    def ask(host: str, target_port: int) -> list[Any]:
        found = []
        for kind, family in (("A", socket.AF_INET), ("AAAA", socket.AF_INET6)):
            packet = DNSRecord.question(host, kind).send("127.0.0.1", port, timeout=5)
            for row in DNSRecord.parse(packet).rr:
                address = (str(row.rdata), target_port)
                info = address if family == socket.AF_INET else (*address, 0, 0)
                found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", info))
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return found

    async def lookup(host: str, target_port: int) -> list[Any]:
        return await asyncio.to_thread(ask, host, target_port)

    try:
        yield zone, lookup
    finally:
        server.stop()
        server.server.server_close()
