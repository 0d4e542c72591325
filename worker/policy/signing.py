"""
Webhook signatures: Standard Webhooks v1 (HMAC-SHA256).

Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"  # noqa: S105  (the prefix, not a secret)


def decode_secret(secret: str) -> bytes:
    """
    `whsec_` + base64 of 24-64 bytes -> the key.

    Raises:
        ValueError: another form; the message does not repeat the secret.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError("a signing secret is whsec_ followed by the base64 of 24-64 bytes")
    return key


def sign_headers(
    message_id: str, timestamp: int, body: bytes, secrets: Sequence[str]
) -> dict[str, str]:
    """
    The three headers of Standard Webhooks; `timestamp` is Unix seconds.

    Each secret signs (several while one replaces another); with none there is
    no signature header.
    """
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    signatures = [
        "v1,"
        + base64.b64encode(hmac.new(decode_secret(s), signed, hashlib.sha256).digest()).decode()
        for s in secrets
    ]
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if signatures:
        headers["webhook-signature"] = " ".join(signatures)
    return headers
