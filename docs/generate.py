"""
Writes docs/cli.md and docs/settings.md from the code, or checks that they are up to date.

    python -m docs.generate            # write
    python -m docs.generate --check    # exit 1 and name the outdated files
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import SecretStr

from settings import Settings, accepted, variable_name
from worker.cli.commands import main as commands
from worker.cli.completion import PROGRAM

HERE = Path(__file__).parent


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "`make docs` generates this page from the class `Settings`; do not edit it. Each variable can",
        "also be set in a `.env` file in the working directory, or as a file of that name in the secrets",
        "directory (`LETTA_SECRETS_DIR`, else `/run/secrets`). The environment wins over `.env`, and",
        "`.env` wins over the secrets files. A `.env` is read only if it belongs to you or root and nobody",
        "else can write to it; the same condition holds for modules in the working directory. A wrong",
        "value ends a command with exit code 2 and one line that says what is accepted.",
        "",
        "| variable | default | accepted | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            raise TypeError(f"{name}: a secret must have no default")
        shown = "unset" if default is None else "empty" if default == "" else f"`{default}`"
        cells = (f"`{variable_name(name)}`", shown, accepted(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    lines = [
        "# Command line",
        "",
        "`make docs` generates this page from the commands of `letta-workers`; do not edit it. Every command",
        "prints the same text with `--help`.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done; of `run`: drained |",
        "| 1 | failed: the server is away or refused, or the command's own text says what; of `run`: crash loop |",
        "| 2 | wrong argument or setting, or a package is missing; a repetition does not help |",
        "| 3 | of `run`: forced to stop by a second signal, or by the end of the grace |",
        "| 130 | interrupted by Ctrl-C |",
    ]
    for path, command in _commands(commands, PROGRAM):
        lines += ["", f"## {path}", "", *_command(path, command)]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")


def _command(path: str, command: click.Command) -> Iterator[str]:
    """Yield the lines of one command: its text, what it is called with, its options."""
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    usage = " ".join(command.collect_usage_pieces(click.Context(command)))
    yield from ("```", f"{path} {usage}", "```", "", *_escaped(text.strip()))
    if examples:
        yield from ("", "```", *examples.replace("\b\n", "").strip().splitlines(), "```")
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield from ("", "| option | meaning |", "|---|---|")
    for option in options:
        names, meaning = option.get_help_record(click.Context(command)) or ("", "")
        yield f"| `{_cell(names)}` | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _escaped(text: str) -> list[str]:
    return text.replace("<", "&lt;").replace("*", "\\*").splitlines()


PAGES = {"cli.md": cli_page, "settings.md": settings_page}


def main() -> int:
    outdated = []
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            outdated.append(name)
    if outdated:
        sys.stderr.write(f"outdated: {', '.join(outdated)}; run `make docs`\n")
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
