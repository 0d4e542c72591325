"""README's commands exist, and every link between pages has a target."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.servers import run

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_make_target_it_names_exists_and_help_lists_it() -> None:
    shown = run(["make", "--no-print-directory", "help"], cwd=ROOT).stdout
    listed = set(re.findall(r"make (\w+)", shown))
    assert {"demo", "run", "test", "check", "bench"} <= listed
    assert set(re.findall(r"`?make (\w+)", README)) <= listed


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("*.md")))
def test_every_link_has_a_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
