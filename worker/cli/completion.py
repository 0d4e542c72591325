"""Prints the script that lets a shell complete the commands and options of `letta-workers`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "letta-workers"
_VARIABLE = "_LETTA_WORKERS_COMPLETE"  # the name that click derives from the program's


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands and options in a shell.

    \b
    Examples:
      eval "$(letta-workers completion bash)"      # in ~/.bashrc
      eval "$(letta-workers completion zsh)"       # in ~/.zshrc
      letta-workers completion fish > ~/.config/fish/completions/letta-workers.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click completes nothing in {shell}")
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, _VARIABLE).source())
