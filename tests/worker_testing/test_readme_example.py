"""The test that examples/README.md shows passes as it stands."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.servers import run

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
INDEX = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""


def test_the_readmes_test_of_a_job_passes(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", INDEX, re.DOTALL)
    (tmp_path / "test_mail.py").write_text(snippet, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(INI, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = run(command, cwd=tmp_path, env=dict(os.environ))
    assert "1 passed" in done.stdout, done.stdout + done.stderr
