"""
Messages inside a window: like values, but many at once, so with a header of two bytes.

    format 1 | flags 1 | msgpack, compressed and encrypted as the flags say
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cache import codec, sealing
from cache.envelope import Unreadable
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
            flags, body = flags | _ZSTD, sealing.compress(body)
        if self._keyring is not None:
            flags, body = flags | _ENCRYPTED, self._keyring.encrypt(body, place)
        return bytes((_FORMAT, flags)) + body

    def open_all(self, records: Sequence[bytes], place: bytes) -> list[dict[str, Any]]:
        """
        Raises:
            Unreadable: one of them is not ours, altered, or of an absent key.
        """
        try:
            if self._keyring is None:
                return [self._open(record) for record in records]
            return [self._open_sealed(record, place) for record in records]
        except (CodecError, IndexError) as exc:
            raise Unreadable(str(exc)) from None

    def _open(self, record: bytes) -> Any:
        if record[:2] == _PLAIN:
            return codec.decode(memoryview(record)[2:])
        if record[0] != _FORMAT or record[1] != _ZSTD:
            raise Unreadable("not a message in clear")
        return codec.decode(sealing.decompress(record[2:], _MAX_INFLATED))

    def _open_sealed(self, record: bytes, place: bytes) -> Any:
        assert self._keyring is not None  # noqa: S101
        if record[0] != _FORMAT or record[1] not in {_ENCRYPTED, _ENCRYPTED | _ZSTD}:
            raise Unreadable("in clear, where only sealed messages are trusted")
        body = self._keyring.decrypt(record[2:], place)
        if record[1] & _ZSTD:
            body = sealing.decompress(body, _MAX_INFLATED)
        return codec.decode(body)


def total_bytes(records: Iterable[bytes]) -> int:
    return sum(len(record) for record in records)
