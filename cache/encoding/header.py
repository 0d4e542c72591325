"""
The fixed header of a cached value, and the stored value as it was read.

    magic 2 | format version 1 | codec 1 | flags 1 | name length 1 | schema 2 |
    fill id 8 | run of the server 8 | version 8 | etag 8 |
    fresh until, ms 8 | kept until, ms 8 | load time, us 4 | crc32 4 | payload length 4 |
    key length 2

The fill id stands in bytes 9-16, where lease.lua and fill.lua compare it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

MAGIC = b"\xc1L"  # no msgpack, JSON or UTF-8 begins with 0xc1
FORMAT_VERSION = 3
LAYOUT = struct.Struct(">2sBBBBH8s8sQ8sQQIIIH")
HEADER_BYTES = LAYOUT.size
MAX_US = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a value is stored with. Times are Unix milliseconds of the server's clock."""

    fill_id: bytes
    run: bytes
    fresh_until_ms: int
    kept_until_ms: int
    load_us: int = 0
    version: int = 0


class Header(NamedTuple):
    """The fields before the payload, in their order."""

    magic: bytes
    format_version: int
    codec: int
    flags: int
    name_length: int
    schema: int
    fill_id: bytes
    run: bytes
    version: int
    etag: bytes
    fresh_until_ms: int
    kept_until_ms: int
    load_us: int
    crc: int
    length: int
    key_length: int


class StoredValue:
    """
    A stored value as it was read, not decoded: its header, and a copy of the rest.

    `head` is None when the value is unreadable. `seen` is its fill id, readable or not: the
    scripts compare it.
    """

    __slots__ = ("head", "key", "name", "payload", "seen")

    def __init__(
        self,
        seen: bytes,
        head: Header | None = None,
        name: bytes = b"",
        key: bytes = b"",
        payload: bytes = b"",
    ) -> None:
        self.seen = seen
        self.head = head
        self.name = name
        self.key = key
        self.payload = payload
