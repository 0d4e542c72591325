"""The command line, `letta-workers`: a module a group of commands."""

from worker.cli.commands import main

__all__ = ["main"]
