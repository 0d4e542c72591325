"""Checks command lines of `letta-workers` in a text against the parser, without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from worker.cli.commands import main

# A line stands in inline code, or begins a line of a fenced block.
_INLINE = re.compile(r"`letta-workers ([^`\n]*)`")
_FENCED = re.compile(r"^(?:[A-Z_]+=\S+ )*letta-workers (.*)$", re.MULTILINE)


def command_lines(text: str) -> list[str]:
    """What follows `letta-workers` in each command line of a Markdown text."""
    return [*_INLINE.findall(text), *_FENCED.findall(text)]


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Every command that is not hidden, by its path: `jobs list`."""
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def problem_of(line: str) -> str | None:
    """Why the parser would not take a line; None where it would."""
    words = shlex.split(line, comments=True)
    command: click.Command = main
    while isinstance(command, click.Group):
        name = words.pop(0) if words else ""
        if name.startswith("-"):
            return None  # an option of the group itself
        if name not in command.commands:
            return f"no command {name!r} in: letta-workers {line}"
        command = command.commands[name]
        if isinstance(command, click.Group) and not words:
            return None  # the group is meant
    known = {name for option in command.params for name in option.opts} | {"-h", "--help"}
    unknown = [
        word for word in words if word.startswith("-") and word.partition("=")[0] not in known
    ]
    return f"no option {unknown[0]} in: letta-workers {line}" if unknown else None
