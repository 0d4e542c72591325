"""
Which addresses the workers may connect to. Public ones, and what the operator allows.

Tunnelled forms (IPv4-mapped, 6to4, Teredo, NAT64) are judged by the address
inside as well: otherwise ::ffff:169.254.169.254 would be a way around.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Beyond what `is_global` covers: addresses that look public and are not.
_DENIED: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's host agent
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64, local use
        "::ffff:0:0:0/96",  # SIIT
        "::/96",  # IPv4-compatible, deprecated
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local, deprecated
    )
)


def parse_networks(text: str) -> tuple[Network, ...]:
    """`10.0.0.0/8, fd00::/8` -> networks. Raises ValueError on anything else."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """`allowed`: private networks that the operator lets the workers reach."""

    allowed: tuple[Network, ...] = ()

    def refusal(self, address: str) -> str | None:
        """Why an IP address must not be connected to, or None when it may be."""
        try:
            ip = _unmapped(ip_address(address.partition("%")[0]))
        except ValueError:
            return "is not an IP address"
        if _inside(ip, self.allowed):
            return None
        if ip.is_multicast or not ip.is_global or _inside(ip, _DENIED):
            return "is not a public address"
        return None


def _unmapped(ip: Address) -> Address:
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


def _inside(ip: Address, networks: Iterable[Network]) -> bool:
    return any(ip.version == network.version and ip in network for network in networks)
