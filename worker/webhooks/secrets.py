"""
Encrypts secrets for storage in Redis with AES-256-GCM, bound to the delivery and its URL.

Without the binding, somebody who can write to the server could have a secret sent to
another host, by changing the URL or by moving the secret to another delivery.

Sealed form: 12 bytes of nonce, then the ciphertext with its tag. The package
`cryptography` is imported only when it is needed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from worker.errors import InvalidArgument

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class SecretBox:
    """Seals and opens secrets with one key of 32 bytes; without a key both raise an error."""

    def __init__(self, key: bytes | None) -> None:
        self._key = key

    def seal(self, secret: str, *, owner: str, url: str) -> bytes:
        """
        Encrypt; only `open` with the same owner and URL reads it back.

        Raises:
            InvalidArgument: there is no key, or the cryptography package is absent.
        """
        nonce = os.urandom(_NONCE_BYTES)
        sealed: bytes = self._cipher().encrypt(nonce, secret.encode(), _place(owner, url))
        return nonce + sealed

    def open(self, sealed: bytes, *, owner: str, url: str) -> str:
        """
        Decrypt.

        Raises:
            InvalidArgument: no key, another key, another owner or URL, or changed bytes.
        """
        from cryptography.exceptions import InvalidTag

        try:
            nonce, data = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            plain: bytes = self._cipher().decrypt(nonce, data, _place(owner, url))
            return plain.decode()
        except (InvalidTag, ValueError):
            raise InvalidArgument(
                "a stored signing secret cannot be opened: it was sealed with another "
                "LETTA_WEBHOOK_ENCRYPTION_KEY, or for another delivery or URL"
            ) from None

    def _cipher(self) -> AESGCM:
        if self._key is None:
            raise InvalidArgument(
                "the secret of a single webhook must be stored encrypted: set "
                "LETTA_WEBHOOK_ENCRYPTION_KEY (base64 of 32 bytes) for clients and workers, or "
                "sign all webhooks with LETTA_WEBHOOK_SECRET"
            )
        try:
            from cryptography.hazmat.primitives.ciphers import aead
        except ImportError:
            raise InvalidArgument(
                "sealing a secret needs the cryptography package: pip install 'letta-redis[encryption]'"
            ) from None
        return aead.AESGCM(self._key)


def _place(owner: str, url: str) -> bytes:
    # Neither contains a line break (worker/queue/arguments.py), so every pair has its own bytes.
    return f"{owner}\n{url}".encode()
