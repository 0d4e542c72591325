"""Reads the address that the web server listens on, and tells whether only this machine reaches it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

_FORM = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:/\s]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """A host or IP address, and a port; port 0 takes any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this machine reach it. A name other than localhost may be any."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own; only localhost is such a name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_address(text: str) -> Address:
    """
    Read `host:port`, with an IPv6 address in brackets.

    Raises:
        ValueError: it is not of this form; the message says what is accepted.
    """
    found = _FORM.fullmatch(text)
    if found is None or int(found["port"]) > 65_535:
        raise ValueError(f"{text!r} is not an address; accepted: host:port, such as 127.0.0.1:8283")
    return Address(found["v6"] or found["host"], int(found["port"]))
