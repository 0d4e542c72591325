"""Verifies signatures with the Standard Webhooks project's own library."""

from __future__ import annotations

import base64
import time

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from standardwebhooks import Webhook, WebhookVerificationError

from worker.webhooks import ed25519
from worker.webhooks.signing import check_secret, decode_private_key, decode_secret, sign_headers

pytestmark = pytest.mark.unit

OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(bytes(range(64))).decode()
BODY = ' {"a":"ü"}\n'.encode()


@pytest.mark.parametrize("known", [OLD, NEW])
def test_each_secret_of_a_rotation_verifies(known: str) -> None:
    headers = sign_headers("msg_1", int(time.time()), BODY, [NEW, OLD])
    assert Webhook(known).verify(BODY, headers) == {"a": "ü"}


@pytest.mark.parametrize("change", ["body", "id", "time"])
def test_nothing_signed_can_be_changed(change: str) -> None:
    now = int(time.time())
    headers = sign_headers("msg_1", now, BODY, [NEW])
    body = BODY
    if change == "body":
        body += b" "
    elif change == "id":
        headers["webhook-id"] = "msg_2"
    else:
        headers["webhook-timestamp"] = str(now + 1)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(body, headers)


def test_without_secrets_there_is_no_signature() -> None:
    assert "webhook-signature" not in sign_headers("msg_1", 1, BODY, [])


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_???", base64.b64encode(b"k" * 24).decode(), "whsec_c2hvcnQ="]
)
def test_a_malformed_secret_is_refused_without_repeating_it(secret: str) -> None:
    with pytest.raises(ValueError, match="signing secret") as caught:
        decode_secret(secret)
    assert not secret or secret == "whsec_" or secret not in str(caught.value)


SEED = bytes(range(32))
PRIVATE = "whsk_" + base64.b64encode(SEED).decode()


def test_a_v1a_signature_verifies_with_its_public_key_only() -> None:
    headers = sign_headers("msg_1", 1_700_000_000, BODY, [PRIVATE], sign_ed25519=ed25519.sign)
    version, _, text = headers["webhook-signature"].partition(",")
    assert version == "v1a"
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    signed = b"msg_1.1700000000." + BODY
    public.verify(base64.b64decode(text), signed)
    with pytest.raises(InvalidSignature):
        public.verify(base64.b64decode(text), signed + b" ")


def test_both_kinds_sign_together_and_v1_still_verifies() -> None:
    now = int(time.time())
    headers = sign_headers("msg_1", now, BODY, [PRIVATE, NEW], sign_ed25519=ed25519.sign)
    kinds = [part.partition(",")[0] for part in headers["webhook-signature"].split()]
    assert kinds == ["v1a", "v1"]
    assert Webhook(NEW).verify(BODY, headers) == {"a": "ü"}


def test_a_private_key_is_32_bytes_or_64_with_its_public_half() -> None:
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
    both = "whsk_" + base64.b64encode(SEED + public).decode()
    assert decode_private_key(both) == decode_private_key(PRIVATE) == SEED
    for bad in ("whsk_", "whsk_c2hvcnQ=", "whpk_" + base64.b64encode(SEED).decode()):
        with pytest.raises(ValueError, match=r"whsk_|whsec_"):
            check_secret(bad)
