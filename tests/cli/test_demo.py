"""The demo runs end to end, and its report must account for everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.wait import eventually_sync

pytestmark = pytest.mark.acceptance


@pytest.mark.serial
def test_the_demo_loses_nothing_reports_it_and_keeps_its_page(tmp_path: Path) -> None:
    letta = str(Path(sys.executable).parent / "letta-workers")
    log = tmp_path / "stderr"
    environ = {**os.environ, "LETTA_WORKER_COUNT": "2", "COLUMNS": "200"}
    with log.open("wb") as said:
        command = [letta, "demo", "--json", "--keep"]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=said)
    try:
        shown = r"it goes on at (http\S+) until Ctrl-C"
        page = eventually_sync(lambda: re.search(shown, log.read_text()), deadline_s=200)
        assert page is not None
        overview = httpx.get(page[1], timeout=60, trust_env=False)
        process.terminate()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log.read_text()
    assert f"see it at work: {page[1]}" in log.read_text()
    assert "Completed jobs as a table" in overview.text
    found = json.loads(output)
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
