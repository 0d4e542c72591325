"""
The command line `letta-workers`: one module per group of commands.

It starts here, before anything large is imported: a probe asks `health` every few
seconds, and the base install lacks what the commands need.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["main"]


def main() -> None:
    """Run the command that the process's arguments name."""
    try:
        if sys.argv[1:2] == ["health"] and (code := _health(sys.argv[2:])) is not None:
            raise SystemExit(code)
        _commands()()
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        extra = _extra_of(package)
        if extra is None:
            raise
        needs = f"letta-workers needs the package {package}, which is not installed"
        print(f"{needs}: pip install 'letta-redis[{extra}]'", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _health(arguments: list[str]) -> int | None:
    """Print the probe's answer; returns the exit code, or None: the command has to answer."""
    from worker.cli.probe import answer

    found = answer(arguments)
    if found is None:
        return None
    print(found.text, file=sys.stderr if found.is_error else sys.stdout)
    return found.code


def _commands() -> Callable[[], None]:
    from worker.imports import import_lightly

    import_lightly()
    from worker.cli.commands import main as commands

    return commands


def _extra_of(package: str) -> str | None:
    """Return the extras that a command lacks, or None if the package is in none of them."""
    import re
    from importlib.metadata import requires

    for line in requires("letta-redis") or ():
        found = re.match(r"([\w-]+).*extra == .(worker|web)\b", line)
        if found and found[1].replace("-", "_") == package:
            return "worker" if found[2] == "worker" else "embedded,web,worker"
    return None
