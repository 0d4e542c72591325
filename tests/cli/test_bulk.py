"""`jobs change`, `dead change`, `jobs run-now` and `jobs add` on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from click.testing import CliRunner

from settings import load_settings
from worker import JobQueue, call, open_queue
from worker.cli.commands import main
from worker.queue.audit import AuditEntry
from worker.queue.bulk import Bulk, BulkStep

pytestmark = pytest.mark.acceptance


@pytest.fixture(autouse=True)
def _server(private_valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)


def letta_workers(*words: str, answer: str = "") -> Any:
    return CliRunner().invoke(main, list(words), input=answer)


def with_queue(work: Callable[[JobQueue], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with open_queue(load_settings()) as queue:
            return await work(queue)

    return asyncio.run(run())


def fill(count: int) -> None:
    calls = [call("tidy", number, job_id=f"j-{number}", delay_s=3600) for number in range(count)]
    with_queue(lambda queue: queue.enqueue_many(calls))


def trail() -> list[tuple[str, str]]:
    page = with_queue(lambda queue: queue.jobs.audit.page())
    entries: list[AuditEntry] = page.entries
    assert all(entry.actor.startswith("cli") for entry in entries)
    return [(entry.action, entry.outcome) for entry in entries]


def test_jobs_that_filters_mean_are_changed_after_a_question() -> None:
    fill(30)
    words = ("jobs", "change", "run", "--id-prefix", "j-1")
    tried = letta_workers(*words, "--dry-run")
    assert (tried.exit_code, tried.output) == (0, "11 of 30 match\n")
    assert letta_workers(*words, answer="n\n").exit_code == 1
    assert trail() == []

    done = letta_workers(*words, answer="y\n")

    assert done.exit_code == 0
    assert "11 due now; 11 of 30 match" in done.output
    assert trail() == [("bulk run", "11 of 11 changed among 30")]
    data = json.loads(letta_workers("jobs", "change", "cancel", "--yes", "--json").output)
    assert (data["done"], data["stopped"]) == (30, False)
    assert "0 deleted; 0 of 0 match" in letta_workers("dead", "change", "delete", "--yes").output


def test_ctrl_c_stops_between_steps_and_tells_what_was_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(500)
    step = Bulk.step

    async def interrupted(self: Bulk, *args: Any, **options: Any) -> BulkStep:
        os.kill(os.getpid(), signal.SIGINT)
        return await step(self, *args, **options, limit_s=0)

    monkeypatch.setattr(Bulk, "step", interrupted)
    stopped = letta_workers("jobs", "change", "run", "--yes")
    monkeypatch.undo()

    assert stopped.exit_code == 130
    assert "200 due now; 200 of 200 match; stopped" in stopped.output


def test_arguments_are_compared_only_where_the_setting_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(3)
    words = ("jobs", "change", "cancel", "--argument", "0=1", "--dry-run")
    refused = letta_workers(*words)
    assert refused.exit_code == 2
    assert "LETTA_WEB_SHOW_ARGUMENTS" in refused.output
    monkeypatch.setenv("LETTA_WEB_SHOW_ARGUMENTS", "true")
    assert letta_workers(*words).output == "1 of 3 match\n"
    for wrong in (("--argument", "x"), ("--older-than", "2"), ("--older-than", "xh")):
        assert letta_workers("jobs", "change", "cancel", "--dry-run", *wrong).exit_code == 2


def test_a_job_is_enqueued_and_run_by_hand() -> None:
    words = ("jobs", "add", "tidy", "--id", "mine", "--delay", "60")
    added = letta_workers(*words, "--args", '["a", {"b": 1}]', "--kwargs", '{"c": null}')
    assert added.output == "enqueued mine\n"
    assert json.loads(letta_workers(*words, "--json").output) == {"id": "mine", "is_new": False}
    made = with_queue(lambda queue: queue.jobs.arguments("mine"))
    assert (made.args, made.kwargs) == (["a", {"b": 1}], {"c": None})
    assert letta_workers("jobs", "run-now", "mine").output == "mine is due now\n"
    assert letta_workers("jobs", "run-now", "mine").output == "mine is not deferred\n"
    assert letta_workers("jobs", "run-now", "other").exit_code == 1
    for option, text in (("--args", "{}"), ("--args", "["), ("--kwargs", "[]")):
        assert letta_workers("jobs", "add", "tidy", option, text).exit_code == 2
    assert letta_workers("jobs", "add", "a b").exit_code == 2
    assert [action for action, _ in trail()] == ["jobs/run", "jobs/run", "jobs/add", "jobs/add"]
