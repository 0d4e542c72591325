"""Defines what a read and a request for a lease return, and the keys that they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cache.encoding.header import Header, StoredValue


@dataclass(slots=True)  # not frozen: that costs 3 us a hit
class Reading:
    """
    The result of a read.

    `found` means that the value is trusted and kept; `fresh` that it is within its TTL too.
    `seen` is the fill id of the stored bytes, trusted or not: a lease is granted only to a
    caller that has read the value which is stored now.
    """

    found: bool = False
    fresh: bool = False
    value: Any = None
    stored: StoredValue | None = None
    seen: bytes = b""
    now_ms: int = 0
    unknown_model: bool = False
    complete: bool = False  # a window that reaches the conversation's beginning

    @property
    def head(self) -> Header | None:
        """The header of the stored value; None for a window."""
        return None if self.stored is None else self.stored.head

    @property
    def expired_s(self) -> float:
        """For how long the value's TTL has been over; below 0 while it is fresh."""
        return 0.0 if self.head is None else (self.now_ms - self.head.fresh_until_ms) / 1000


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to store one value. It ends when the agent's entry is invalidated."""

    key: str
    field: str
    token: bytes
    version: bytes
    granted_us: int
    run: bytes  # of the server, as known before the grant

    @property
    def keys(self) -> tuple[str, str, str]:
        """Keys of version, value and lease, in the order of the scripts."""
        return self.key, value_key(self.key, self.field), lease_key(self.key, self.field)


@dataclass(frozen=True, slots=True)
class Held:
    """Another process loads the value. Its lease ends in `left_s` seconds unless renewed."""

    left_s: float


class Changed:
    """The stored value is not the one that the caller read, or the server is another: read again."""


class Intended:
    """A write of this entry is under way: load without a lease, and store nothing."""


def value_key(key: str, field: str) -> str:
    """The key of a value. The envelope names it, and encryption authenticates it."""
    return f"{key}:{field}"


def lease_key(key: str, field: str) -> str:
    """The key of a value's lease."""
    return f"{key}:lease:{field}"
