"""
Lua scripts without one of their rules, to show that a test notices its absence.

A script marks a rule by two comments: `-- rule <name>` before it, `-- end of rule` after.
"""

from __future__ import annotations

import re

import pytest

from cache.connection import scripts


def remove_rule(monkeypatch: pytest.MonkeyPatch, script: str, rule: str, instead: str = "") -> None:
    """From here on, `scripts.load` gives `script` with `instead` in the rule's place."""
    load = scripts.load
    marked = re.compile(rf"^ *-- rule {rule}\b.*?^ *-- end of rule\n", re.MULTILINE | re.DOTALL)

    def load_without(package: str, name: str, *shared: str) -> scripts.Script:
        found = load(package, name, *shared)
        if name != script:
            return found
        source, count = marked.subn(instead + "\n", found.source)
        assert count == 1, f"{name}.lua marks the rule {rule} {count} times"
        return scripts.Script(name, source)

    monkeypatch.setattr(scripts, "load", load_without)
