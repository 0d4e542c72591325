"""
Encrypts the secrets and the URLs of webhooks for storage in Redis.

A secret is bound to the delivery and its URL, a URL to the delivery or endpoint.

Without the binding, somebody who can write to the server could have a secret sent to
another host, by changing the URL or by moving the secret to another delivery.
"""

from __future__ import annotations

from cache import CodecError, Keyring
from worker.errors import InvalidArgument

HIDDEN = "***"
# No URL begins so.
_SEALED_URL = b"\0"


class DeliverySecrets:
    """
    Seals and opens the secrets of deliveries. Without a keyring, secrets are refused and
    URLs stay in clear.
    """

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
                "a stored secret or URL cannot be opened: its key is not in "
                "LETTA_WEBHOOK_ENCRYPTION_KEY, or it was sealed for another delivery or URL"
            ) from None

    def hide_url(self, url: str, *, owner: str) -> str | bytes:
        """Return the URL as it is stored: sealed with a keyring, because it may carry a token."""
        if self._keyring is None:
            return url
        return _SEALED_URL + self._keyring.encrypt(url.encode(), _place(owner, ""))

    def open_url(self, stored: str | bytes, *, owner: str) -> str:
        """
        Return the URL that `hide_url` stored.

        Raises:
            InvalidArgument: as `open`.
            UnicodeDecodeError: it is neither a URL nor sealed.
        """
        if isinstance(stored, str):
            return stored
        if not stored.startswith(_SEALED_URL):
            return stored.decode()
        return self.open(stored.removeprefix(_SEALED_URL), owner=owner, url="")

    def show_url(self, stored: bytes, *, owner: str) -> str:
        """As `open_url`, but `***` for one that this process cannot open."""
        try:
            return self.open_url(stored, owner=owner)
        except (InvalidArgument, UnicodeDecodeError):
            return HIDDEN

    @property
    def hides_urls(self) -> bool:
        return self._keyring is not None

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
