"""Every import contract can fail: a copy of the sources with one forbidden import for each breaks it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SOURCES = ("cache", "worker", "letta_redis", "tests/support")
# File -> import that is not allowed there -> words of the contract that it breaks.
FORBIDDEN = [
    ("worker/queue/store.py", "import worker.queue.client", "No two siblings"),
    ("cache/stats.py", "import worker.errors", "The packages import one way"),
    ("worker/queue/dead.py", "import worker.llm.client", "The worker's features"),
    ("cache/encoding/codec.py", "import cache.coherence.entries", "The cache's folders"),
    ("worker/llm/rescuer.py", "import settings", "Only composition roots"),
    ("worker/webhooks/jobs.py", "import letta_redis", "Only letta_redis imports letta"),
    ("worker/client.py", "import arq", "What a service imports"),
    ("worker/web/site.py", "import jinja2", "Only the page needs jinja2"),
    ("worker/app/options.py", "import worker.engine", "What builds a service's client"),
    ("letta_redis/__init__.py", "import arq", "letta_redis names no package"),
    ("worker/webhooks/policy.py", "import redis", "Pure modules"),
]


def broken_contracts(root: Path) -> list[str]:
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    contracts = re.findall(r"^(.+) (KEPT|BROKEN)\b", found.stdout, re.MULTILINE)
    assert len(contracts) == len(FORBIDDEN), found.stdout + found.stderr
    return [name for name, state in contracts if state == "BROKEN"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "settings.py", tmp_path)
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    (tmp_path / "tests/__init__.py").touch()
    return tmp_path


def test_an_untouched_copy_keeps_every_contract(copy: Path) -> None:
    assert broken_contracts(copy) == []


def test_a_forbidden_import_breaks_its_contract(copy: Path) -> None:
    for file, line, _ in FORBIDDEN:
        with (copy / file).open("a") as source:
            source.write(f"\nif TYPE_CHECKING:\n    {line}\n")
    broken = broken_contracts(copy)
    missed = [words for _, _, words in FORBIDDEN if not any(words in name for name in broken)]
    assert missed == []


def test_settings_import_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "settings.py").read_text())
    named = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert "pydantic_settings" in named
    assert not named & {"", "cache", "worker", "letta_redis"}
