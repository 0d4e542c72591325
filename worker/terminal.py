"""
Escapes unprintable characters in text before a terminal shows it.

Ids, URLs, error texts and model names come from callers, receivers and
providers. On a terminal, an escape sequence in one of them could clear the
screen, rename the window or forge a line, and a bidirectional control could
reverse text. All output of the commands and all console logs pass through here.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from textwrap import indent
from typing import Any


def printable(text: str) -> str:
    r"""Escape unprintable characters, line breaks included: `\n`, `\x1b`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """Escape unprintable characters, but keep line breaks, as for a traceback."""
    return "\n".join(printable(line) for line in text.split("\n"))


def printable_event(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape all values of a log event (a structlog processor)."""
    for name, value in event.items():
        if name == "exception":
            # Indent, so that no line of an error's text can pass for a log line.
            event[name] = indent(printable_lines(str(value)), "  ")
        elif isinstance(value, str):
            event[name] = printable(value)
        elif not (shown := repr(value)).isprintable():
            event[name] = printable(shown)
    return event


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
