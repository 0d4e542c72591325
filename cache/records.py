"""
Encodes the messages inside a window, and splits them into parts that scripts can carry.

A message has a header of only two bytes, because there are many:

    format 1 | flags 1 | msgpack, compressed and encrypted as the flags say
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cache.encoding import codec, encryption
from cache.encoding.envelope import Unreadable
from cache.errors import CodecError
from cache.keys import CACHE_LARGE_TOGETHER
from cache.options import CacheOptions

Pairs = list[Any]  # sequence_id, record, sequence_id, record, ...

_FORMAT = 0xC1
_ZSTD, _ENCRYPTED = 1, 2
_PLAIN = bytes([_FORMAT, 0])
_MAX_INFLATED = 64 * 1024 * 1024


class Records:
    """Seals and opens messages. Encryption binds them to `key`, the window's own."""

    def __init__(self, options: CacheOptions) -> None:
        self._compress_min = options.compress_min_bytes
        self._keyring = options.keyring

    def seal(self, message: Any, key: bytes) -> bytes:
        """
        Raises:
            NotEncodable: a part of the message would not come back as given.
        """
        flags, body = 0, codec.encode_exact(message)
        if self._compress_min and len(body) >= self._compress_min:
            packed = encryption.compress(body, _MAX_INFLATED)
            if packed is not None:
                flags, body = flags | _ZSTD, packed
        if self._keyring is not None:
            flags, body = flags | _ENCRYPTED, self._keyring.encrypt(body, key)
        return bytes((_FORMAT, flags)) + body

    def open_all(self, records: Sequence[bytes], key: bytes) -> list[dict[str, Any]]:
        """
        Raises:
            Unreadable: a record has another format, was altered, or its encryption key is not set.
        """
        try:
            bodies = [self._body(record, key) for record in records]
            # Decoding one array takes half the time of decoding each message.
            messages = codec.decode(codec.array(bodies))
        except (CodecError, IndexError) as exc:
            raise Unreadable(str(exc)) from None
        return list(messages)

    def _body(self, record: bytes, key: bytes) -> bytes:
        if self._keyring is None:
            if record[:2] == _PLAIN:
                return record[2:]
            if record[0] != _FORMAT or record[1] != _ZSTD:
                raise Unreadable("no message, or encrypted without LETTA_CACHE_ENCRYPTION_KEYS set")
            return encryption.decompress(record[2:], _MAX_INFLATED)
        if record[0] != _FORMAT or record[1] not in {_ENCRYPTED, _ENCRYPTED | _ZSTD}:
            raise Unreadable("not encrypted, but LETTA_CACHE_ENCRYPTION_KEYS is set")
        body = self._keyring.decrypt(record[2:], key)
        return encryption.decompress(body, _MAX_INFLATED) if record[1] & _ZSTD else body


def size_of(pairs: Pairs) -> int:
    """The bytes of these messages."""
    return sum(map(len, pairs[1::2]))


def is_large(pairs: Pairs) -> bool:
    """Whether these are too many bytes for one script."""
    return size_of(pairs) > CACHE_LARGE_TOGETHER


def steps_of(pairs: Pairs) -> Iterator[Pairs]:
    """The same in parts, each small enough for one script."""
    start, size = 0, 0
    for at in range(0, len(pairs), 2):
        more = len(pairs[at + 1])
        if at > start and size + more > CACHE_LARGE_TOGETHER:
            yield pairs[start:at]
            start, size = at, 0
        size += more
    yield pairs[start:]
