"""Builds a project whose modules have our names, in an environment that has our wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from tests.support.servers import run

ROOT = Path(__file__).resolve().parents[2]

# Modules with our three names; OWNER distinguishes them from ours.
MODULES = {
    "settings.py": 'OWNER = "the project"\n',
    "cache/__init__.py": 'OWNER = "the project"\n',
    "worker/__init__.py": 'OWNER = "the project"\n',
    "worker/jobs.py": """
from typing import Any

from cache import OWNER as CACHE
from settings import OWNER as SETTINGS

from letta_redis import Permanent, open_cache


async def greet(ctx: dict[str, Any], name: str) -> list[str]:
    if not name:
        raise Permanent("no name")
    async with open_cache() as cache:
        await cache.agents.set(name, {"greeted": True})
    return [f"hello {name}", CACHE, SETTINGS, __file__]
""",
}


def build(folder: Path, *, target: str = "wheel", source: Path = ROOT) -> Path:
    """Build our wheel or sdist from a source tree. Return the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = run(command, cwd=source)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


class Environment:
    """
    A virtual environment with a wheel of ours and, from `.venv`, what it needs.

    The environment sees the packages of `.venv` but not its `.pth` files, so not
    the checkout.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.python = home / "bin" / "python"
        done = run([sys.executable, "-m", "venv", "--without-pip", str(home)])
        assert done.returncode == 0, done.stderr
        (self.packages,) = home.glob("lib/python*/site-packages")
        needed = sysconfig.get_path("purelib")
        (self.packages / "needed.pth").write_text(needed + "\n")

    def install(self, wheel: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
        install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
        done = run([*pip, str(self.python), *install])
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: str, cwd: Path, **values: str) -> subprocess.CompletedProcess[str]:
        """Python with these arguments; `values` are environment variables."""
        return run([str(self.python), *arguments], cwd=cwd, env=environ(**values))

    def command(self, name: str) -> str:
        return str(self.home / "bin" / name)


class Project:
    """A working directory and the environment that it runs in."""

    def __init__(self, folder: Path, environment: Environment) -> None:
        self.folder = folder
        self.environment = environment

    def script(self, text: str, *arguments: str, **values: str) -> str:
        """Run a program in the project's folder and return its standard output."""
        path = self.folder / "program.py"
        path.write_text(text)
        done = self.environment.run("-W", "error", str(path), *arguments, cwd=self.folder, **values)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout


def write_modules(folder: Path) -> None:
    for name, text in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def environ(**values: str) -> dict[str, Any]:
    """The environment without what would lead Python to the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, **values}
