"""`letta-workers webhooks`, run inside the test on a private server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.options import endpoint_limits, retry_schedule
from tests.support.queues import open_queue, stores_of
from tests.support.workers import quick_settings, running_worker
from tests.webhooks.test_end_to_end import Headers, receiver
from worker.cli.commands import main
from worker.webhooks.attempts import Attempt, ClaimedDelivery
from worker.webhooks.policy import Outcome, decide

pytestmark = pytest.mark.integration

URL = "https://hooks.example.com/a"
LIMITS = endpoint_limits()


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

    def sent(self, url: str = URL, **more: Any) -> str:
        async def work() -> str:
            async with open_queue(self.settings) as queue:
                return await queue.send_webhook(url, {}, event_type="x", **more)

        return run(work())

    def ended(self, url: str = URL, **outcome: Any) -> str:
        async def work() -> str:
            async with open_queue(self.settings) as queue:
                id_ = await queue.send_webhook(url, {}, event_type="x")
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
    assert again.exit_code == 2
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


def test_an_endpoint_is_disabled_and_shown(shell: Shell) -> None:
    assert shell.json("disable", "--endpoint-id", "t1") == {"changed": True}
    assert shell.json("endpoint", URL)["breaker"] == "closed"
    assert shell("endpoint").exit_code == 2
    assert shell("enable", URL, "--endpoint-id", "t1").exit_code == 2


def test_a_ping_is_sent_and_shown(shell: Shell) -> None:
    id_ = shell.json("ping", URL, "--no-wait")["id"]
    assert shell.json("show", id_)["event_type"] == "ping"
    assert "next attempt" in shell("show", id_).output


def test_what_waits_is_listed_and_retried_now(shell: Shell) -> None:
    waiting = shell.ended(status=503)
    later = shell.sent(delay_s=3600)
    shell.ended(status=200)
    rows = shell.json("list", "--pending")
    assert {row["id"]: row["state"] for row in rows} == {waiting: "waiting", later: "pending"}
    assert "next=" in shell("list", "--state", "waiting").output
    assert [row["id"] for row in shell.json("list", "--state", "pending")] == [later]
    assert shell.json("list", "--pending", "--url", URL + "/other") == []
    assert shell.json("list", "--pending", "--until", "1h") == []
    assert shell.json("retry", waiting, later) == {"retried": 2}
    for id_ in (waiting, later):
        assert shell.json("show", id_)["next_attempt_at"] <= datetime.now(UTC).isoformat()


def test_what_cannot_be_retried_now_says_why(shell: Shell) -> None:
    refused = shell("retry", shell.ended(status=200))
    assert (refused.exit_code, "replay it" in refused.output) == (2, True)
    assert shell("retry", "msg_unknown").exit_code == 1
    assert shell("retry").exit_code == 2


def test_failures_in_a_row_are_shown_before_the_breaker_opens(shell: Shell) -> None:
    for _ in range(3):
        shell.ended(status=500)
    shell.ended(URL + "/other", status=200)
    (found,) = shell.json("endpoints")["failing"]
    assert (found["name"], found["failures"], found["breaker"]) == (URL, 3, "closed")
    assert "failures=3 of 5" in shell("endpoints").output
    shown = shell.json("endpoint", URL)
    assert (shown["failures"], shown["breaker_failures"]) == (3, 5)
    assert (shown["host"], shown["host_waiting"]) == ("hooks.example.com:443", 0)


@pytest.mark.parametrize("command", ["show", "list"])
def test_a_forbidden_address_names_the_setting_that_allows_it(shell: Shell, command: str) -> None:
    id_ = shell.ended(error="target_forbidden", permanent=True)
    shown = shell(*(["show", id_] if command == "show" else ["list"])).output
    assert "LETTA_WEBHOOK_ALLOW_CIDRS" in shown
    assert "LETTA_WEBHOOK_ALLOW_CIDRS" in shell.json("show", id_)["remedy"]


def test_a_ping_waits_for_its_first_attempt(shell: Shell) -> None:
    refused = shell("ping", URL, "--timeout", "0.1")
    assert (refused.exit_code, "no attempt within 0.1 s" in refused.output) == (1, True)


@pytest.mark.parametrize(
    ("status", "exit_code", "says"), [("204 x", 0, "delivered: status 204"), ("503 x", 1, "503")]
)
def test_a_ping_says_how_its_first_attempt_ended(
    shell: Shell, status: str, exit_code: int, says: str
) -> None:
    async def work() -> str:
        async def take(_path: str, _headers: Headers, _body: bytes) -> bytes:
            return f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode()

        async with receiver(take) as url, running_worker(shell.settings):
            result = await asyncio.to_thread(shell, "ping", url)
        assert result.exit_code == exit_code, result.output
        return result.output

    assert says in run(work())


def test_a_ping_to_a_forbidden_address_names_the_setting(shell: Shell) -> None:
    async def work() -> str:
        async with running_worker(shell.settings):
            result = await asyncio.to_thread(shell, "ping", "http://10.0.0.1/hooks")
        assert result.exit_code == 1, result.output
        return result.output

    assert "LETTA_WEBHOOK_ALLOW_CIDRS" in run(work())
