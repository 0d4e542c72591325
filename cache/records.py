"""
Messages inside a window: like values, but many at once, so with a header of two bytes.

    format 1 | flags 1 | msgpack, compressed and encrypted as the flags say
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache.encoding import codec, encryption
from cache.encoding.envelope import Unreadable
from cache.errors import CodecError
from cache.options import CacheOptions

_FORMAT = 0xC1
_ZSTD, _ENCRYPTED = 1, 2
_PLAIN = bytes([_FORMAT, 0])
_MAX_INFLATED = 64 * 1024 * 1024


class Records:
    """Seals and opens messages. `place` is the window's key, which encryption binds."""

    def __init__(self, options: CacheOptions) -> None:
        self._compress_min = options.compress_min_bytes
        self._keyring = options.keyring

    def seal(self, message: Any, place: bytes) -> bytes:
        """
        Raises:
            NotEncodable: something inside has no safe encoding.
        """
        flags, body = 0, codec.encode(message)
        if self._compress_min and len(body) >= self._compress_min:
            packed = encryption.compress(body, _MAX_INFLATED)
            if packed is not None:
                flags, body = flags | _ZSTD, packed
        if self._keyring is not None:
            flags, body = flags | _ENCRYPTED, self._keyring.encrypt(body, place)
        return bytes((_FORMAT, flags)) + body

    def open_all(self, records: Sequence[bytes], place: bytes) -> list[dict[str, Any]]:
        """
        Raises:
            Unreadable: one of them is not ours, altered, or of an absent key.
        """
        try:
            bodies = [self._body(record, place) for record in records]
            # One array, decoded at once: half the time of one call a message.
            messages = codec.decode(codec.array(bodies))
        except (CodecError, IndexError) as exc:
            raise Unreadable(str(exc)) from None
        return list(messages)

    def _body(self, record: bytes, place: bytes) -> bytes:
        if self._keyring is None:
            if record[:2] == _PLAIN:
                return record[2:]
            if record[0] != _FORMAT or record[1] != _ZSTD:
                raise Unreadable("not a message in clear")
            return encryption.decompress(record[2:], _MAX_INFLATED)
        if record[0] != _FORMAT or record[1] not in {_ENCRYPTED, _ENCRYPTED | _ZSTD}:
            raise Unreadable("in clear, where only sealed messages are trusted")
        body = self._keyring.decrypt(record[2:], place)
        return encryption.decompress(body, _MAX_INFLATED) if record[1] & _ZSTD else body
