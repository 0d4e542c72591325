"""The reference page and the completion of the command line, against the commands that exist."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from docs.generate import cli_page
from worker.cli.commands import main

PROGRAM = "letta-workers"


def options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden]


def visible(group: click.Group, path: str = PROGRAM) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from visible(command, f"{path} {name}")


def test_page_has_every_command_with_every_option() -> None:
    first, *sections = cli_page().split("\n## ")
    found = dict(section.split("\n", 1) for section in sections)

    assert len(found) == len(sections)
    assert set(found) == {path for path, _ in visible(main)}
    for path, command in visible(main):
        for option in options(command):
            assert all(name in found[path] for name in option.opts), (path, option.opts)
    for code in ("0", "1", "2", "3", "130"):
        assert f"\n| {code} |" in first


def test_every_command_and_every_option_is_explained() -> None:
    for path, command in visible(main):
        assert command.help, path
        for option in options(command):
            assert option.help, f"{path} {option.opts[0]}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell], prog_name=PROGRAM)

    assert done.exit_code == 0
    assert "_LETTA_WORKERS_COMPLETE" in done.stdout
    assert f"{shell}_complete" in done.stdout


def test_completion_offers_commands_and_options() -> None:
    def offered(words: str) -> list[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        env = {"_LETTA_WORKERS_COMPLETE": "bash_complete", **asked}
        done = CliRunner().invoke(main, [], env=env, prog_name=PROGRAM)
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert offered("letta-workers dea") == ["dead"]
    assert "--json" in offered("letta-workers status --j")
    assert "child" not in offered("letta-workers c")
