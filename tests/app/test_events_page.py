"""docs/events.md names every event that the code logs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception"}


def events(path: Path) -> set[str]:
    """The constant dotted names that a module logs."""
    calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
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


def test_every_event_is_on_the_page() -> None:
    page = (ROOT / "docs" / "events.md").read_text()
    modules = [*ROOT.glob("cache/**/*.py"), *ROOT.glob("worker/**/*.py")]
    found = set().union(*(events(path) for path in modules))
    assert len(found) > 40
    assert {name for name in found if f"`{name}`" not in page} == set()
