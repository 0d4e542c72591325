"""
Decides which hosts, ports and addresses the workers may connect to. Pure.

Public addresses are allowed, and what the operator adds. An IPv4-mapped IPv6
address is checked as the IPv4 address. Every other form that embeds an IPv4
address (6to4, Teredo, NAT64, SIIT, IPv4-compatible) is refused, unless the
operator allows its network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from worker.http.urls import ascii_host

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


# Refused although `is_global` may call them public.
_DENIED = _networks(
    "168.63.129.16/32",  # Azure's host agent
    "192.0.0.0/24",  # protocol assignments; one cloud's metadata service is among them
    "192.88.99.0/24",  # 6to4 relays, deprecated
    "64:ff9b::/96",  # NAT64
    "64:ff9b:1::/48",  # NAT64, local use
    "::ffff:0:0:0/96",  # SIIT
    "::/96",  # IPv4-compatible, deprecated
    "2001::/23",  # Teredo, ORCHID and other protocol assignments
    "100::/64",  # discard
    "2002::/16",  # 6to4
    "3fff::/20",  # documentation
    "5f00::/16",  # segment routing
    "fec0::/10",  # site-local, deprecated
)
# Services that give out a machine's credentials. An allowed name does not reach them,
# because its DNS records may be under somebody else's control.
_METADATA = _networks(
    "169.254.0.0/16",
    "fe80::/10",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "100.100.100.200/32",
    "fd00:ec2::/32",
)
# Services that could read a POST as commands of their own protocol, or that nobody may
# probe from inside: mail, shells, DNS, directories, file shares, databases, caches.
_NOT_HTTP = frozenset(
    {
        21, 22, 23, 25, 53, 69, 110, 111, 135, 137, 138, 139, 143, 161, 179, 389, 445, 465, 514,
        587, 636, 873, 993, 995, 1433, 1521, 2049, 2375, 2376, 2379, 2380, 3306, 3389, 5060, 5432,
        5672, 5900, 6000, 6379, 6380, 6443, 9042, 9092, 10250, 11211, 16379, 26379, 27017,
    }
)  # fmt: skip


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse `10.0.0.0/8, fd00::/8`. Raises ValueError on anything else."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def parse_ports(text: str) -> frozenset[int] | None:
    """Parse `443, 8000-8999`; None for empty text. Raises ValueError on anything else."""
    ports: set[int] = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 1 <= low <= high <= 65_535:
            raise ValueError(f"{part!r} is not a port or a range of ports")
        ports.update(range(low, high + 1))
    return frozenset(ports) or None


def parse_hosts(text: str) -> tuple[str, ...]:
    """
    Parse `hooks.internal, *.svc.local` to names in lower case and ASCII.

    Raises:
        BadURL: IDNA 2008 does not allow a name.
    """
    names = [part.strip().lower().rstrip(".") for part in text.split(",") if part.strip()]
    below = ["*." if name.startswith("*.") else "" for name in names]
    return tuple(
        dots + ascii_host(name.removeprefix("*.")) for dots, name in zip(below, names, strict=True)
    )


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """
    What the operator allows beyond public addresses.

    allowed: private networks.
    hosts: names (`a.b`, or `*.b` for all names below b) whose addresses may be private,
        but never link-local or a cloud's metadata service.
    ports: the only allowed ports; None allows all except those of well-known services
        that do not speak HTTP.
    """

    allowed: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    ports: frozenset[int] | None = None

    def refusal(self, address: str, host: str = "") -> str | None:
        """Return why `address`, resolved from the name `host`, is forbidden; None when allowed."""
        try:
            ip = _unmapped(ip_address(address.partition("%")[0]))
        except ValueError:
            return "is not an IP address"
        if _inside(ip, self.allowed):
            return None
        if ip.is_multicast or ip.is_unspecified or _inside(ip, _METADATA):
            return "is not a public address"
        if host and self._names(host):
            return None
        if not ip.is_global or _inside(ip, _DENIED):
            return "is not a public address"
        return None

    def port_refusal(self, port: int) -> str | None:
        """Return why a port is forbidden; None when it is allowed."""
        if self.ports is not None:
            return None if port in self.ports else f"port {port} is not allowed"
        return f"port {port} belongs to another protocol" if port in _NOT_HTTP else None

    def _names(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return any(
            name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern
            for pattern in self.hosts
        )


def _unmapped(ip: Address) -> Address:
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


def _inside(ip: Address, networks: Iterable[Network]) -> bool:
    return any(ip.version == network.version and ip in network for network in networks)
