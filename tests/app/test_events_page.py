"""docs/events.md names exactly the events that the code logs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
PACKAGES = ("cache", "worker", "letta_redis")
MODULES = [
    ROOT / "settings.py",
    *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")),
]
LEVELS = {"debug", "info", "warning", "error", "exception"}


def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def logged(path: Path) -> set[str]:
    """The constant dotted names that a module passes to a logger."""
    calls = [node for node in nodes(path) if isinstance(node, ast.Call)]
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LEVELS
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
        and "." in call.args[0].value
    }


def constants(path: Path) -> set[str]:
    """Every string constant of a module: some events are chosen from a table."""
    found = [node.value for node in nodes(path) if isinstance(node, ast.Constant)]
    return {value for value in found if isinstance(value, str)}


def test_every_event_is_on_the_page() -> None:
    found = set().union(*(logged(path) for path in MODULES))
    assert len(found) > 40
    assert {name for name in found if f"`{name}`" not in PAGE} == set()


def test_every_event_on_the_page_is_in_the_code() -> None:
    cells = re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([a-z_.]+)`", cell)}
    known = set().union(*(constants(path) for path in MODULES))
    assert len(named) > 40
    assert named - known == set()
