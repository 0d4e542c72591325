"""
Runs aimock, a foreign fake provider from npm, at the version of the lock file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from tests.support.node import node_and_npm, once, run

_SOURCE = Path(__file__).parent / "aimock"
_STOP_S = 10


def installed(npm: list[str]) -> Path:
    """
    The folder where it is installed; done once for each lock file, beside the checkout's caches.

    Raises:
        RuntimeError: npm fails.
    """

    def install(fresh: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_SOURCE / name, fresh)
        run([*npm, "ci", "--no-audit", "--no-fund"], fresh)

    lock = (_SOURCE / "package-lock.json").read_bytes()
    return once(f"aimock-{sha256(lock).hexdigest()[:12]}", install)


@contextlib.contextmanager
def foreign_provider() -> Iterator[str]:
    """Its base URL, without /v1."""
    node, npm = node_and_npm()
    modules = installed(npm) / "node_modules"
    process = subprocess.Popen(
        [node, str(_SOURCE / "server.cjs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(modules)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"aimock ended with code {process.wait()} before it listened"
        yield json.loads(line)["url"]
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
