"""`letta-workers webhooks`, run inside the test on a private server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.options import retry_schedule, target_limits
from tests.support.queues import open_queue, stores_of
from tests.support.workers import quick_settings
from worker.cli.commands import main
from worker.webhooks.attempts import Attempt, ClaimedDelivery
from worker.webhooks.policy import Outcome, decide

pytestmark = pytest.mark.integration

URL = "https://hooks.example.com/a"
LIMITS = target_limits()


class Shell:
    """Runs commands and prepares the deliveries that they show."""

    def __init__(self, url: str) -> None:
        self.settings = quick_settings(url)

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["webhooks", *arguments])

    def json(self, *arguments: str) -> Any:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def ended(self, **outcome: Any) -> str:
        async def work() -> str:
            async with open_queue(self.settings) as queue:
                id_ = await queue.send_webhook(URL, {}, event_type="x")
                now = datetime.now(UTC)
                claimed = await stores_of(queue).attempts.begin(id_, now, LIMITS, max_attempts=10)
                assert isinstance(claimed, ClaimedDelivery)
                verdict = decide(
                    Outcome(**outcome), attempt=1, schedule=retry_schedule(), rng=lambda: 0.5
                )
                attempt = Attempt(now, outcome.get("status"), outcome.get("error", ""), 1.0)
                await stores_of(queue).attempts.record(
                    id_, 1, attempt, verdict, LIMITS, draw=0.5, max_attempts=10
                )
                return id_

        return run(work())


def run(work: Coroutine[Any, Any, str]) -> str:
    return asyncio.run(work)


@pytest.fixture
def shell(private_valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)
    return Shell(private_valkey_url)


def test_dead_letters_are_listed_and_replayed_since_a_time(shell: Shell) -> None:
    dead = shell.ended(error="target_forbidden", permanent=True)
    shell.ended(status=200)
    assert [row["id"] for row in shell.json("list", "--since", "1h")] == [dead]
    assert "target_forbidden" in shell("list").output
    assert shell.json("replay", "--since", "5m")["replayed"] == 1
    assert shell.json("list", "--since", "1h") == []
    assert shell.json("show", dead)["state"] == "pending"


def test_one_delivery_is_replayed_by_its_id(shell: Shell) -> None:
    id_ = shell.ended(status=200)
    assert shell.json("replay", id_) == {"replayed": 1}
    again = shell("replay", id_)
    assert again.exit_code == 1
    assert "has not ended" in again.output


def test_replay_requires_a_selection(shell: Shell) -> None:
    assert shell("replay").exit_code == 2
    assert shell("replay", "--since", "yesterday").exit_code == 2


def test_a_gone_endpoint_is_shown_and_enabled_again(shell: Shell) -> None:
    id_ = shell.ended(status=410)
    found = shell.json("endpoints")
    assert [(row["name"], row["reason"]) for row in found["disabled"]] == [(URL, "gone")]
    assert [event["kind"] for event in found["events"]] == ["endpoint_disabled"]
    refused = shell.json("replay", "--since", "1h")
    assert (refused["replayed"], refused["endpoint_disabled"]) == (0, 1)
    assert shell.json("enable", URL) == {"changed": True}
    assert "already enabled" in shell("enable", URL).output
    assert shell.json("replay", id_) == {"replayed": 1}


def test_an_endpoint_is_disabled_and_its_target_is_shown(shell: Shell) -> None:
    assert shell.json("disable", "--endpoint-id", "t1") == {"changed": True}
    assert shell.json("target", URL)["breaker"] == "closed"
    assert shell("target").exit_code == 1
    assert shell("enable", URL, "--endpoint-id", "t1").exit_code == 1


def test_a_ping_is_sent_and_shown(shell: Shell) -> None:
    id_ = shell.json("ping", URL)["id"]
    assert shell.json("show", id_)["event_type"] == "ping"
    assert "next attempt" in shell("show", id_).output
