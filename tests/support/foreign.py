"""A provider that none of us wrote: aimock, from npm as its lock file says, in a process of Node's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

_SOURCE = Path(__file__).parent / "aimock"
_HOME = Path(__file__).resolve().parents[2] / ".cache" / "node"
_INSTALL_S, _STOP_S = 100, 10


def installed() -> Path:
    """
    The folder where it is installed; done once for each lock file, beside the checkout's caches.

    Raises:
        RuntimeError: there is no Node.js with npm, or npm fails.
    """
    lock = (_SOURCE / "package-lock.json").read_bytes()
    place = _HOME / f"aimock-{sha256(lock).hexdigest()[:12]}"
    if place.is_dir():
        return place
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise RuntimeError("these tests need Node.js >= 20.15 with npm on the PATH")
    _HOME.mkdir(parents=True, exist_ok=True)
    # Another process of the same run may be at it: whoever is first puts it in place.
    fresh = Path(tempfile.mkdtemp(dir=_HOME))
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_SOURCE / name, fresh)
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"],
            cwd=fresh,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSTALL_S,
        )
        if done.returncode:
            raise RuntimeError(f"npm ci ended with code {done.returncode}: {done.stderr[-500:]}")
        with contextlib.suppress(OSError):
            fresh.rename(place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return place


@contextlib.contextmanager
def foreign_provider() -> Iterator[str]:
    """Its base URL, without /v1."""
    process = subprocess.Popen(
        ["node", str(_SOURCE / "server.cjs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(installed() / "node_modules")},
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
