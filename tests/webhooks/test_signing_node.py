"""Verifies signatures with the Standard Webhooks project's own library for Node.js."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.node import node_and_npm, once, run
from worker.webhooks import ed25519
from worker.webhooks.signing import sign_headers

pytestmark = pytest.mark.integration

VERSION = "1.1.1"
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(bytes(range(64))).decode()
BODY = '{"a":"ü","n":[1,2.5,null]}'
VERIFY = """
const { Webhook } = require("standardwebhooks");
const { secret, body, headers } = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(new Webhook(secret).verify(body, headers)));
"""
# The project's libraries for Python and Node.js do not verify v1a, so this follows the specification.
VERIFY_V1A = """
const crypto = require("crypto");
const { key, body, headers } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const x = Buffer.from(key.replace(/^whpk_/, ""), "base64").toString("base64url");
const publicKey = crypto.createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
const signed = [headers["webhook-id"], headers["webhook-timestamp"], body].join(".");
const found = headers["webhook-signature"].split(" ").filter((part) => part.startsWith("v1a,"));
console.log(found.some((part) =>
  crypto.verify(null, Buffer.from(signed), publicKey, Buffer.from(part.slice(4), "base64"))));
"""


@pytest.fixture(scope="module")
def library() -> Path:
    """Install the library once, next to the checkout's other caches."""
    _, npm = node_and_npm()

    def install(fresh: Path) -> None:
        package = f"standardwebhooks@{VERSION}"
        run([*npm, "install", "--no-audit", "--no-fund", "--prefix", str(fresh), package], fresh)

    return once(f"standardwebhooks-{VERSION}", install)


def node(script: str, question: dict[str, Any], home: Path | None = None) -> str:
    done = subprocess.run(
        [node_and_npm()[0], "-e", script], cwd=home, input=json.dumps(question), text=True,
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    return done.stdout or done.stderr


def verify(library: Path, secret: str, body: str, headers: dict[str, str]) -> str:
    return node(VERIFY, {"secret": secret, "body": body, "headers": headers}, library)


def test_each_secret_of_a_rotation_verifies_in_node(library: Path) -> None:
    headers = sign_headers("msg_1", int(time.time()), BODY.encode(), [NEW, OLD])
    for secret in (NEW, OLD):
        assert json.loads(verify(library, secret, BODY, headers)) == json.loads(BODY)


def test_a_changed_body_does_not_verify_in_node(library: Path) -> None:
    headers = sign_headers("msg_1", int(time.time()), BODY.encode(), [NEW])
    assert "No matching signature found" in verify(library, NEW, BODY + " ", headers)


def test_a_v1a_signature_verifies_in_node_for_its_body_only() -> None:
    seed = bytes(range(32))
    private = "whsk_" + base64.b64encode(seed).decode()
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    key = "whpk_" + base64.b64encode(public).decode()
    headers = sign_headers(
        "msg_1", int(time.time()), BODY.encode(), [NEW, private], sign_ed25519=ed25519.sign
    )
    question = {"key": key, "body": BODY, "headers": headers}
    assert json.loads(node(VERIFY_V1A, question)) is True
    assert json.loads(node(VERIFY_V1A, {**question, "body": BODY + " "})) is False
