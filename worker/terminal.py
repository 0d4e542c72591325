"""
Makes text safe to show: what came from others cannot move the cursor, recolor or hide anything.

Ids, URLs, error texts and names of models come from callers, receivers and
providers. On a terminal an escape sequence in one of them clears the screen,
renames the window or forges a line; a mark of direction turns text around. All
that the commands print and the workers log for people to read comes through here.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from textwrap import indent
from typing import Any


def printable(text: str) -> str:
    r"""One line: what is not printable comes as `\n`, `\x1b`, `\u202e` and the like."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """The same for text that has lines of its own, such as a traceback."""
    return "\n".join(printable(line) for line in text.split("\n"))


def printable_event(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: every value as it may be shown."""
    for name, value in event.items():
        if name == "exception":
            # Indented, so that no line of an error's text passes for a log line.
            event[name] = indent(printable_lines(str(value)), "  ")
        elif isinstance(value, str):
            event[name] = printable(value)
        elif not (shown := repr(value)).isprintable():
            event[name] = printable(shown)
    return event


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
