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
        if sys.argv[1:2] == ["health"] and (text := _healthy(sys.argv[2:])) is not None:
            print(text)  # noqa: T201
            return
        _commands()()
    except ModuleNotFoundError as exc:
        if not _in_worker_extra(exc.name):
            raise
        print(  # noqa: T201
            f"letta-workers needs the package {exc.name}: pip install 'letta-redis[worker]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def _healthy(arguments: list[str]) -> str | None:
    from worker.cli.probe import answer

    return answer(arguments)


def _commands() -> Callable[[], None]:
    from worker.imports import import_lightly

    import_lightly()
    from worker.cli.commands import main as commands

    return commands


def _in_worker_extra(module: str | None) -> bool:
    from importlib.metadata import requires

    top = (module or "").partition(".")[0].replace("_", "-")
    needed = [line for line in requires("letta-redis") or () if "extra == 'worker'" in line]
    return any(line.startswith(top) for line in needed if top)
