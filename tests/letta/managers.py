"""
Runs Letta's own manager tests with the plug-in, and audits the cache after every call.

    LETTA_TESTS=/path/to/letta/tests make letta-managers

The tests are in Letta's repository (tag 0.16.8), not in its package, and are not
kept here. What fails runs once more without the plug-in: some of these tests need
providers that are not there. The exit code is 0 if nothing was stale, and nothing
failed with the plug-in alone.
"""

from __future__ import annotations

# ruff: noqa: T201  (a program that reports to its terminal)
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.letta.postgres import ROOT, postgres
from tests.letta.processes import model_server


def main(arguments: Sequence[str]) -> int:
    """Args: the folder of Letta's tests, then what pytest is to run there (tests/managers)."""
    folder, *chosen = arguments
    tests = Path(folder).resolve()
    if not (tests / "managers" / "conftest.py").is_file():
        print(f"{tests} has no managers/conftest.py: LETTA_TESTS names the tests of Letta 0.16.8")
        return 2
    with TemporaryDirectory(prefix="letta-managers-", dir="/tmp") as place:
        home = Path(place)
        home.chmod(0o755)  # PostgreSQL runs as another user
        with postgres(home / "postgres") as server, model_server(home) as models:
            environment = {
                "LETTA_PG_URI": server.uri(server.create()),
                "LETTA_DIR": place,
                "LETTA_ENCRYPTION_KEY": "a key of the tests",
                "OPENAI_API_KEY": "none",
                "OPENAI_BASE_URL": models,
            }
            return _compared(tests, chosen or ["tests/managers"], home, environment)


def _compared(tests: Path, chosen: list[str], home: Path, environment: dict[str, str]) -> int:
    ended = _run(tests, ["-p", "manager_audit", *chosen], home, environment)
    failed = _failed(home)
    if failed:
        print(f"{len(failed)} failed; without the plug-in:", flush=True)
        again = ["--last-failed", "--last-failed-no-failures", "none", *chosen]
        _run(tests, again, home, environment)
    ours = failed - _failed(home)
    print(
        f"{len(failed)} failed with the plug-in, {len(ours)} of them not without it", *sorted(ours)
    )
    # Anything else than failures: stale reads, or tests that did not run.
    return int(bool(ours) or ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))


def _run(tests: Path, arguments: list[str], home: Path, environment: dict[str, str]) -> int:
    """Run pytest beside Letta's tests. They are a package `tests`, too: ours is not importable there."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("LETTA_")}
    variables |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'letta'}", **environment}
    command = [
        sys.executable, "-m", "pytest", "-q", "--tb=short", "--show-capture=no", "-p", "no:warnings",
        "--continue-on-collection-errors", "-o", "timeout=600", "-o", f"cache_dir={home / 'cache'}",
    ]  # fmt: skip
    return subprocess.run(
        [*command, *arguments], cwd=tests.parent, env=variables, check=False
    ).returncode


def _failed(home: Path) -> set[str]:
    """The tests that failed when they last ran."""
    kept = home / "cache" / "v" / "cache" / "lastfailed"
    return set(json.loads(kept.read_text())) if kept.is_file() else set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
