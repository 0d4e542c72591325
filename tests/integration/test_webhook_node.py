"""Signatures, judged by the Standard Webhooks project's own library for Node.js."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from worker.effects import ed25519
from worker.policy.signing import sign_headers

VERSION = "1.1.1"
HOME = Path(__file__).resolve().parents[2] / ".cache" / "node"
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(bytes(range(64))).decode()
BODY = '{"a":"ü","n":[1,2.5,null]}'
VERIFY = """
const { Webhook } = require("standardwebhooks");
const { secret, body, headers } = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(new Webhook(secret).verify(body, headers)));
"""
# No library of the project's verifies v1a, in any language: this is the text of the specification.
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
    """Installed once, beside the other caches of the checkout."""
    if not (HOME / VERSION).is_dir():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("Node.js with npm is not on this machine")
        HOME.mkdir(parents=True, exist_ok=True)
        # Another process of the same run may be at it: whoever is first puts it in place.
        fresh = Path(tempfile.mkdtemp(dir=HOME))
        package = f"standardwebhooks@{VERSION}"
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(fresh), package]
        subprocess.run(command, check=True, capture_output=True, timeout=100)
        with contextlib.suppress(OSError):
            fresh.rename(HOME / VERSION)
        shutil.rmtree(fresh, ignore_errors=True)
    return HOME / VERSION


def node(script: str, question: dict[str, Any], home: Path | None = None) -> str:
    done = subprocess.run(
        ["node", "-e", script], cwd=home, input=json.dumps(question), text=True,
        capture_output=True, check=False, timeout=30,
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


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not on this machine")
def test_a_v1a_signature_verifies_in_node_with_the_public_key_and_no_other_body() -> None:
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
