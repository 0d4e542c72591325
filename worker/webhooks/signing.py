"""
Signs webhooks by Standard Webhooks: v1 (HMAC-SHA256) and v1a (ed25519).

Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from functools import lru_cache

SECRET_PREFIX = "whsec_"  # noqa: S105  (the prefix, not a secret)
PRIVATE_KEY_PREFIX = "whsk_"
# Enough for a slow rotation.
MAX_SECRETS = 10

# (private key's 32 bytes, data) -> signature of 64 bytes.
Ed25519Sign = Callable[[bytes, bytes], bytes]


def decode_secret(secret: str) -> bytes:
    """
    Decode `whsec_` + base64 of 24-64 bytes.

    Raises:
        ValueError: another form; the message does not contain the secret.
    """
    key = _base64(secret.removeprefix(SECRET_PREFIX))
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError("a signing secret is whsec_ followed by the base64 of 24-64 bytes")
    return key


def decode_private_key(secret: str) -> bytes:
    """
    Decode `whsk_` + base64 of an ed25519 key (32 bytes, or 64 with the public key) to 32 bytes.

    Raises:
        ValueError: another form; the message does not contain the key.
    """
    key = _base64(secret.removeprefix(PRIVATE_KEY_PREFIX))
    if not secret.startswith(PRIVATE_KEY_PREFIX) or len(key) not in (32, 64):
        raise ValueError("a private key is whsk_ followed by the base64 of an ed25519 key")
    return key[:32]


def check_secret(secret: str) -> None:
    """Raise ValueError unless it is a valid `whsec_` secret or `whsk_` key."""
    if not isinstance(secret, str):
        raise ValueError("a signing secret must be text")  # noqa: TRY004  (as every other fault of it)
    if secret.startswith(PRIVATE_KEY_PREFIX):
        decode_private_key(secret)
    else:
        decode_secret(secret)


def sign_headers(
    message_id: str,
    timestamp: int,
    body: bytes,
    secrets: Sequence[str],
    *,
    sign_ed25519: Ed25519Sign | None = None,
) -> dict[str, str]:
    """
    Return the headers of Standard Webhooks; `timestamp` is Unix seconds.

    Each secret adds a signature (several during a rotation): `whsec_` a v1, `whsk_`
    a v1a, which needs `sign_ed25519`. Without secrets there is no signature header.
    """
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    signatures = [_signature(signed, secret, sign_ed25519) for secret in secrets]
    if signatures:
        headers["webhook-signature"] = " ".join(signatures)
    return headers


def _signature(signed: bytes, secret: str, sign_ed25519: Ed25519Sign | None) -> str:
    if not secret.startswith(PRIVATE_KEY_PREFIX):
        digest = hmac.digest(_cached_secret(secret), signed, "sha256")
        return "v1," + base64.b64encode(digest).decode()
    if sign_ed25519 is None:
        raise ValueError("a whsk_ key needs sign_ed25519")
    return "v1a," + base64.b64encode(sign_ed25519(decode_private_key(secret), signed)).decode()


@lru_cache(maxsize=256)
def _cached_secret(secret: str) -> bytes:
    return decode_secret(secret)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
