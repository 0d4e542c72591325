"""What the README shows was run as it stands."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.servers import run

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs_as_it_stands(private_valkey_url: str, number: int) -> None:
    done = run(
        [sys.executable, "-W", "error", "-c", EXAMPLES[number]],
        env={**os.environ, "LETTA_REDIS_URL": private_valkey_url},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


def test_both_halves_have_an_example() -> None:
    assert len(EXAMPLES) == 2


def test_every_make_target_it_names_exists_and_help_lists_it() -> None:
    shown = run(["make", "--no-print-directory", "help"], cwd=ROOT).stdout
    listed = set(re.findall(r"make (\w+)", shown))
    assert {"demo", "run", "test", "check", "bench"} <= listed
    assert set(re.findall(r"`?make (\w+)", README)) <= listed


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("*.md")))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
