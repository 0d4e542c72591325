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

import pytest

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


def verify(library: Path, secret: str, body: str, headers: dict[str, str]) -> str:
    question = json.dumps({"secret": secret, "body": body, "headers": headers})
    done = subprocess.run(
        ["node", "-e", VERIFY], cwd=library, input=question, text=True,
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    return done.stdout or done.stderr


def test_each_secret_of_a_rotation_verifies_in_node(library: Path) -> None:
    headers = sign_headers("msg_1", int(time.time()), BODY.encode(), [NEW, OLD])
    for secret in (NEW, OLD):
        assert json.loads(verify(library, secret, BODY, headers)) == json.loads(BODY)


def test_a_changed_body_does_not_verify_in_node(library: Path) -> None:
    headers = sign_headers("msg_1", int(time.time()), BODY.encode(), [NEW])
    assert "No matching signature found" in verify(library, NEW, BODY + " ", headers)
