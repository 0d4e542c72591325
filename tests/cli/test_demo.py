"""The demo runs end to end, and its report must account for everything."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.servers import run

pytestmark = pytest.mark.acceptance


@pytest.mark.serial
def test_the_demo_loses_nothing_and_reports_it() -> None:
    letta = str(Path(sys.executable).parent / "letta-workers")
    done = run([letta, "demo", "--json"], env={**os.environ, "LETTA_WORKER_COUNT": "2"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["missing"] == []
    assert found["webhooks"]["sent"] == found["webhooks"]["delivered"] == 200
    assert found["webhooks"]["retried"] == 50
    llm = found["llm_requests"]
    assert llm["answered"] + llm["own_errors"] == llm["submitted"] == 100
    assert llm["own_errors"] == 4
    cache = found["agent_cache"]
    assert cache["stale_reads"] == 0
    assert 0 < cache["loader_calls"] < cache["reads"] / 4
    assert found["seconds"] < 60
