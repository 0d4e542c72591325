"""Signatures, judged by the Standard Webhooks project's own library."""

from __future__ import annotations

import base64
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from worker.policy.signing import decode_secret, sign_headers

OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(bytes(range(64))).decode()
BODY = '{"a":"ü"}'.encode()


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
