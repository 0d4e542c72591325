"""Signs with ed25519; imports the package `cryptography` only when a key is used."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from worker.errors import InvalidArgument

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign(private_key: bytes, data: bytes) -> bytes:
    """
    Return the signature (64 bytes) of data by a private key of 32 bytes.

    Raises:
        InvalidArgument: the cryptography package is absent.
    """
    return _key(private_key).sign(data)


@lru_cache(maxsize=64)
def _key(private_key: bytes) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise InvalidArgument(
            "whsk_ keys need the cryptography package: pip install 'letta-redis[encryption]'"
        ) from None
    return ed25519.Ed25519PrivateKey.from_private_bytes(private_key)
