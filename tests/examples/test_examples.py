"""Every example runs by its own command and says what it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
INDEX = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
DEADLINE_S = 240

OUTCOMES = {
    "own_job": """
stored twice: False
order-1 is paid, in try 3
order-2 failed with Permanent: the card has expired
dead letter: charge_card, permanent after 1 try
""",
    "fastapi_service": """
202 ['job_id']
200 {'status': 'complete', 'result': 'welcome mail sent to ada@example.com'}
404 no such job, or its result is no longer kept
""",
    "chained_jobs": """
chained: 6 words
gathered: to be or not to be / the rest is silence
""",
    "cron_jobs": """
the cron job has deleted 2 expired sessions
the schedule has written the hourly report: 1 session
schedules: ['session-report']
""",
    "webhooks": """
received and verified: {'run_id': 'run-1', 'status': 'completed'}
run-1:completed is delivered, attempts: [503, 503, 204]
""",
    "llm_requests": """
batches: 1
answer: echo: one
error: invalid_prompt: asked to fail
answer: echo: two
urgent: echo: now
""",
    "sentry_errors": """
Sentry gets LookupError of {'task': 'ship', 'job_id': 'ship:order-1'}
order-1 failed with LookupError: order-1 is unknown
""",
    "cache_sqlalchemy": """
100 reads, 1 from the database: {'id': 'agent-1', 'name': 'Ada'}
after the commit: {'id': 'agent-1', 'name': 'Grace'}
reads from the database in all: 2
""",
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_example_runs_and_says_what_happened(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout == OUTCOMES[name].lstrip(), done.stderr
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_index_lists_every_example_and_its_command() -> None:
    modules = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "running"}
    assert modules == set(OUTCOMES)
    assert set(re.findall(r"\]\((\w+)\.py\)", INDEX)) == modules | {"running"}
    commands = re.findall(r"^\.venv/bin/python -m examples\.(\w+)", INDEX, re.MULTILINE)
    assert sorted(commands) == sorted(modules)


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_example_names_its_own_command(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert f"\n    .venv/bin/python -m examples.{name}\n" in text
