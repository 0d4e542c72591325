"""
Compresses bytes with zstd and encrypts them with AES-256-GCM.

Both packages are optional. If a setting needs one that is not installed, opening
the cache fails and names the package. Reading a value that needs an absent
package or key is a miss (`CodecError`), never an outage.
"""

from __future__ import annotations

import base64
import binascii
import os
from functools import lru_cache
from threading import get_ident
from typing import Any

from cache.errors import CodecError, MissingExtra

_NONCE_BYTES = 12
KEY_BYTES = 32


class Keyring:
    """
    Encryption keys by id. The first one encrypts; all decrypt.

    To rotate, put a new key in front, and drop the old one after the longest TTL.
    """

    def __init__(self, keys: dict[str, bytes]) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise MissingExtra("encryption", "cryptography") from None
        if not keys:
            raise ValueError("a keyring needs at least one key; none was given")
        self._ciphers = {name.encode(): AESGCM(key) for name, key in keys.items()}
        self._current = next(iter(self._ciphers))

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """
        Parse `base64` or `id:base64 id:base64 ...`; each key has 32 bytes.

        Raises:
            ValueError: the text has another form; the message never contains a key.
            MissingExtra: the cryptography package is not installed.
        """
        return cls(parse_keys(text))

    def encrypt(self, data: bytes, associated: bytes) -> bytes:
        """Encrypt data. It decrypts only with the same `associated` data, such as its Redis key."""
        nonce = os.urandom(_NONCE_BYTES)
        name = self._current
        sealed = self._ciphers[name].encrypt(nonce, data, associated)
        return bytes([len(name)]) + name + nonce + sealed

    def decrypt(self, data: bytes, associated: bytes) -> bytes:
        """
        Raises:
            CodecError: the keyring lacks the key, the data was altered, or it was encrypted with
                other `associated` data.
        """
        from cryptography.exceptions import InvalidTag

        size = 1 + int.from_bytes(data[:1])
        name, rest = data[1:size], data[size:]
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise CodecError("encrypted with a key that is not in the keyring")
        try:
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], associated)
        except (InvalidTag, ValueError):
            raise CodecError("altered, or encrypted for another Redis key") from None


def parse_keys(text: str) -> dict[str, bytes]:
    """The keys of a keyring by id, in order. Raises ValueError, whose message contains no key."""
    keys: dict[str, bytes] = {}
    for part in text.split():
        name, colon, encoded = part.rpartition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if bool(colon) != (1 <= len(name) <= 32) or len(key) != KEY_BYTES or name in keys:
            raise ValueError("is not a list of id:base64 keys of 32 bytes with different ids")
        keys[name] = key
    return keys


def zstd() -> tuple[Any, Any]:
    """This thread's compressor and decompressor. Raises MissingExtra if zstandard is missing."""
    return zstd_of(get_ident())


@lru_cache(maxsize=64)
def zstd_of(_thread: int) -> tuple[Any, Any]:
    # They crash the process when two threads use one at the same time.
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("zstd", "zstandard") from None
    return zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()


def require_zstd() -> None:
    """Raises MissingExtra if zstandard is not installed."""
    zstd()


# A value that shrinks further than this is stored uncompressed, and a frame that inflates further
# is refused: so the stored size bounds what a reader spends.
_MOST_RATIO, _ANY_RATIO_BELOW = 32, 65_536


def compress(data: bytes, limit: int) -> bytes | None:
    """The zstd frame, or None if `decompress` with the same limit would refuse it."""
    packed = bytes(zstd()[0].compress(data))
    return packed if len(data) <= _most_inflated(packed, limit) else None


def _most_inflated(packed: bytes, limit: int) -> int:
    return min(limit, max(_ANY_RATIO_BELOW, _MOST_RATIO * len(packed)))


def decompress(data: bytes, limit: int) -> bytes:
    """
    Raises:
        CodecError: the data is not zstd, inflates to over `limit` bytes or to over 32 times its
            size (from 64 KiB), or zstandard is not installed.
    """
    most = _most_inflated(data, limit)
    try:
        from zstandard import ZstdError, get_frame_parameters

        # The frame names its inflated size, so a hostile one is refused before it is inflated.
        if not 0 <= get_frame_parameters(data).content_size <= most:
            raise CodecError(f"a compressed value inflates to an unknown size or over {most} bytes")
        return bytes(zstd()[1].decompress(data, max_output_size=most))
    except (ImportError, MissingExtra):
        raise CodecError("compressed, but zstandard is not installed") from None
    except ZstdError as exc:
        raise CodecError(f"not a zstd frame: {exc}") from None
