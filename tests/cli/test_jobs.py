"""`letta-workers jobs`, `workers` and `schedules` on a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner

from settings import load_settings
from worker import call, open_queue
from worker.cli.commands import main

pytestmark = pytest.mark.acceptance


def letta_workers(*words: str) -> Any:
    return CliRunner().invoke(main, list(words))


def test_jobs_are_listed_shown_and_aborted(
    private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)

    async def fill() -> None:
        async with open_queue(load_settings()) as queue:
            for number in range(3):
                await queue.enqueue("tidy", "secret", job_id=f"j{number}", delay_s=60)
            await queue.schedule("nightly", call("tidy"), cron="0 3 * * *")

    asyncio.run(fill())

    first = json.loads(letta_workers("jobs", "list", "--limit", "2", "--json").output)
    rest = letta_workers("jobs", "list", "--cursor", first["cursor"])
    shown = letta_workers("jobs", "show", "j1")
    assert [row["id"] for row in first["jobs"]] == ["j0", "j1"]
    assert "j2  tidy  deferred  default  tries=0" in rest.output
    assert "more:" not in rest.output
    assert "state: deferred" in shown.output
    assert "secret" not in first["cursor"] + rest.output + shown.output
    assert "no jobs" in letta_workers("jobs", "list", "--state", "running").output

    schedules = letta_workers("schedules").output
    assert "nightly  tidy  0 3 * * *  default  next=-  last=-" in schedules
    assert "enqueued " in letta_workers("schedules", "run", "nightly").output
    assert letta_workers("schedules", "run", "other").exit_code == 1
    assert "nightly is off" in letta_workers("schedules", "off", "nightly").output
    assert "next=-  last=-  off" in letta_workers("schedules").output
    again = letta_workers("schedules", "off", "nightly", "--json").output
    assert json.loads(again) == {"name": "nightly", "on": False, "changed": False}
    assert "nightly is on" in letta_workers("schedules", "on", "nightly").output
    assert "no schedule or cron 'other'" in letta_workers("schedules", "off", "other").output
    assert "no crons" in letta_workers("schedules", "crons").output
    assert "no worker is alive" in letta_workers("workers").output
    missing = letta_workers("jobs", "show", "nobody")
    assert missing.exit_code == 1
    assert "no job 'nobody' waits or runs" in missing.output
    assert letta_workers("jobs", "abort", "nobody").exit_code == 1


def test_a_function_and_a_priority_are_paused_and_resumed(
    private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)
    assert "nothing is paused" in letta_workers("pause").output
    assert "paused send_mail" in letta_workers("pause", "--function", "send_mail").output
    again = json.loads(letta_workers("pause", "--function", "send_mail", "--json").output)
    assert again == {"paused": "send_mail", "changed": False}
    assert "paused low" in letta_workers("pause", "--priority", "low").output
    found = json.loads(letta_workers("pause", "--json").output)
    assert [(row["priority"], row["function"]) for row in found] == [
        ("low", None),
        (None, "send_mail"),
    ]
    assert "function send_mail  since " in letta_workers("pause").output
    assert "resumed low" in letta_workers("resume", "--priority", "low").output
    assert "low was not paused" in letta_workers("resume", "--priority", "low").output
    assert letta_workers("resume").exit_code == 2
