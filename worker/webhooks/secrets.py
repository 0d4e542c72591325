"""
Sealing what must not be in Redis in clear: AES-256-GCM, bound to the delivery and its URL.

Whoever can write to the server could otherwise have a secret sent to another host: by
storing another URL beside it, or it beside another delivery.

Sealed form: 12 bytes of nonce, then the ciphertext with its tag. The package
`cryptography` is asked for only when something is to be sealed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from worker.errors import InvalidArgument

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class SecretBox:
    """Seals and opens with one key of 32 bytes; without a key it refuses, naming the remedy."""

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
                "a stored signing secret cannot be opened: LETTA_WEBHOOK_ENCRYPTION_KEY differs "
                "from the one it was sealed with, or it was sealed for another delivery or URL"
            ) from None

    def _cipher(self) -> AESGCM:
        if self._key is None:
            raise InvalidArgument(
                "a secret of one webhook is stored only encrypted: set "
                "LETTA_WEBHOOK_ENCRYPTION_KEY (base64 of 32 bytes) for clients and workers, or "
                "sign all with LETTA_WEBHOOK_SECRET"
            )
        try:
            from cryptography.hazmat.primitives.ciphers import aead
        except ImportError:
            raise InvalidArgument(
                "sealing a secret needs the cryptography package: pip install 'letta-redis[encryption]'"
            ) from None
        return aead.AESGCM(self._key)


def _place(owner: str, url: str) -> bytes:
    # Neither holds a line break (worker/queue/arguments.py), so no two pairs give the same bytes.
    return f"{owner}\n{url}".encode()
