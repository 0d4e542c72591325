"""
What may happen to bytes on their way to Redis: zstd, then AES-256-GCM.

Both packages are optional; asking for one that is absent is an error when the
cache is opened, naming the remedy. Reading something that needs an absent
package or key is a miss (`CodecError`), never an outage.
"""

from __future__ import annotations

import base64
import binascii
import os
from functools import cache
from typing import Any

from cache.errors import CodecError, MissingExtra

_NONCE_BYTES = 12
KEY_BYTES = 32


class Keyring:
    """
    Keys by id: the first encrypts, all decrypt.

    Rotate by putting a new key in front, and drop the old one a TTL later.
    """

    def __init__(self, keys: dict[str, bytes]) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise MissingExtra("encryption", "cryptography") from None
        if not keys:
            raise ValueError("a keyring needs at least one key")
        self._ciphers = {name.encode(): AESGCM(key) for name, key in keys.items()}
        self._current = next(iter(self._ciphers))

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """
        `id:base64 id:base64 ...`, 32 bytes a key.

        Raises:
            ValueError: another form; the message never holds the key.
            MissingExtra: the cryptography package is absent.
        """
        return cls(parse_keys(text))

    def encrypt(self, data: bytes, place: bytes) -> bytes:
        """`place` is authenticated with it: what is moved to another key does not open."""
        nonce = os.urandom(_NONCE_BYTES)
        name = self._current
        sealed = self._ciphers[name].encrypt(nonce, data, place)
        return bytes([len(name)]) + name + nonce + sealed

    def decrypt(self, data: bytes, place: bytes) -> bytes:
        """
        Raises:
            CodecError: the key is not in the ring, or the bytes are not what was sealed there.
        """
        from cryptography.exceptions import InvalidTag

        name, rest = data[1 : 1 + data[0]], data[1 + data[0] :]
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise CodecError("encrypted with a key that is not in the ring")
        try:
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise CodecError("not what was sealed in this place") from None


def parse_keys(text: str) -> dict[str, bytes]:
    """The keys of a keyring by id, in order. Raises ValueError without naming a key's bytes."""
    keys: dict[str, bytes] = {}
    for part in text.split():
        name, colon, encoded = part.partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if not colon or not 1 <= len(name) <= 32 or len(key) != KEY_BYTES or name in keys:
            raise ValueError("is not a list of id:base64 keys of 32 bytes, each id once")
        keys[name] = key
    return keys


@cache
def _zstd() -> tuple[Any, Any]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("zstd", "zstandard") from None
    return zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()


def require_zstd() -> None:
    """Raises MissingExtra when values cannot be compressed."""
    _zstd()


# A value that would shrink further than this is stored as it is, and one that would inflate
# further is refused: what a reader spends on stored bytes is bounded by their number.
_MOST_RATIO, _ANY_RATIO_BELOW = 32, 65_536


def compress(data: bytes, limit: int) -> bytes | None:
    """The zstd frame; None when `decompress` with the same limit would refuse it."""
    packed = bytes(_zstd()[0].compress(data))
    return packed if len(data) <= _most_inflated(packed, limit) else None


def _most_inflated(packed: bytes, limit: int) -> int:
    return min(limit, max(_ANY_RATIO_BELOW, _MOST_RATIO * len(packed)))


def decompress(data: bytes, limit: int) -> bytes:
    """
    Raises:
        CodecError: not zstd, over `limit` bytes or 32 times its size, or the package is absent.
    """
    most = _most_inflated(data, limit)
    try:
        from zstandard import ZstdError, get_frame_parameters

        # The frame says how large it becomes: a hostile one is refused before it is inflated.
        if not 0 <= get_frame_parameters(data).content_size <= most:
            raise CodecError("a compressed value of unknown or excessive size")
        return bytes(_zstd()[1].decompress(data, max_output_size=most))
    except (ImportError, MissingExtra):
        raise CodecError("compressed, and the zstandard package is absent") from None
    except ZstdError as exc:
        raise CodecError(f"not zstd: {exc}") from None
