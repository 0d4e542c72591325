"""
Encrypts the secrets of single webhooks for storage in Redis, bound to the delivery and its URL.

Without the binding, somebody who can write to the server could have a secret sent to
another host, by changing the URL or by moving the secret to another delivery.
"""

from __future__ import annotations

from cache import CodecError, Keyring
from worker.errors import InvalidArgument


class DeliverySecrets:
    """Seals and opens the secrets of deliveries. Without a keyring both raise an error."""

    def __init__(self, keyring: Keyring | None) -> None:
        self._keyring = keyring

    def seal(self, secret: str, *, owner: str, url: str) -> bytes:
        """
        Encrypt; only `open` with the same owner and URL reads it back.

        Raises:
            InvalidArgument: there is no keyring.
        """
        return self._keys().encrypt(secret.encode(), _place(owner, url))

    def open(self, sealed: bytes, *, owner: str, url: str) -> str:
        """
        Decrypt.

        Raises:
            InvalidArgument: no keyring or no such key in it, another owner or URL, changed bytes.
        """
        try:
            return self._keys().decrypt(sealed, _place(owner, url)).decode()
        except CodecError:
            raise InvalidArgument(
                "a stored signing secret cannot be opened: its key is not in "
                "LETTA_WEBHOOK_ENCRYPTION_KEY, or it was sealed for another delivery or URL"
            ) from None

    def _keys(self) -> Keyring:
        if self._keyring is None:
            raise InvalidArgument(
                "the secret of a single webhook must be stored encrypted: set "
                "LETTA_WEBHOOK_ENCRYPTION_KEY (base64 of 32 bytes) for clients and workers, or "
                "sign all webhooks with LETTA_WEBHOOK_SECRET"
            )
        return self._keyring


def _place(owner: str, url: str) -> bytes:
    # Neither contains a line break (worker/queue/arguments.py), so every pair has its own bytes.
    return f"{owner}\n{url}".encode()
