"""
Limits how often wrong tokens can be tried: for each address, and in all.

What is over a limit is refused before its token is looked at. Each limit is kept as the time at
which all its attempts are forgotten: one number. Pure; times are seconds of any clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` attempts at once, and one more every `every_s`."""

    burst: int
    every_s: float


EACH = Limit(10, 30.0)
# An address is remembered for 300 s at most, in which this lets 200 pass: no more are
# kept, beside those of known ones.
ALL = Limit(100, 3.0)
_MOST_KNOWN = 200
_TOLD_S = 60.0


class Attempts:
    """The wrong tokens of the last minutes, in this process."""

    def __init__(self, each: Limit = EACH, all_together: Limit = ALL) -> None:
        self._each = each
        self._all = all_together
        self._forgotten_at: dict[str, float] = {}
        self._all_forgotten_at = 0.0
        self._known: dict[str, None] = {}
        self._refused = 0
        self._told_at = -_TOLD_S

    def wait_s(self, address: str, now: float) -> float:
        """How long this address has to wait for its next attempt; 0: not at all."""
        name = network_of(address)
        own = self._forgotten_at.get(name, 0.0)
        # Strangers' guesses must not keep out who has the token.
        in_all = 0.0 if name in self._known else self._all_forgotten_at
        return max(
            0.0,
            own - now - (self._each.burst - 1) * self._each.every_s,
            in_all - now - (self._all.burst - 1) * self._all.every_s,
        )

    def accept(self, address: str) -> None:
        """This address gave a right token: from now on only its own wrong ones count for it."""
        name = network_of(address)
        self._known.pop(name, None)
        self._known[name] = None
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def add(self, address: str, now: float) -> None:
        """Count a wrong token."""
        name = network_of(address)
        self._forgotten_at = {key: at for key, at in self._forgotten_at.items() if at > now}
        own = self._forgotten_at.get(name, now)
        self._forgotten_at[name] = own + self._each.every_s
        self._all_forgotten_at = max(now, self._all_forgotten_at) + self._all.every_s

    def refuse(self, now: float) -> int:
        """Count a refusal; the number since it was last told, once a minute, else 0."""
        self._refused += 1
        if now - self._told_at < _TOLD_S:
            return 0
        told, self._refused, self._told_at = self._refused, 0, now
        return told

    @property
    def addresses(self) -> int:
        """How many are remembered."""
        return len(self._forgotten_at)


def network_of(address: str) -> str:
    """The address, of IPv6 its network of 64 bits: a host there has as many as it likes."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(found, IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped or IPv6Address(int(found) >> 64 << 64))
    return str(found)
