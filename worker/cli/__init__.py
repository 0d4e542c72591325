"""The command line `letta-workers`: one module per group of commands."""

from worker.cli.commands import main

__all__ = ["main"]
