"""`letta-workers batches`, as an operator uses it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.llm import outcomes, settings_for, submit
from tests.support.providers import FakeProvider, fake_provider
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue, open_queue
from worker.cli.commands import main

pytestmark = pytest.mark.acceptance


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


def test_batches_are_listed_shown_canceled_and_retried(
    private_valkey_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)
    monkeypatch.setattr("worker.logs.configure_logging", lambda *_: None)
    settings = settings_for(private_valkey_url, fake)

    def letta(*command: str, code: int = 0) -> Any:
        done = CliRunner().invoke(main, ["batches", *command, "--json"])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if code == 0 else done.output

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    async def submit_texts(*texts: str) -> list[str]:
        async with open_queue(settings) as queue:
            return await submit(queue, "openai", *texts)

    async def work_through(ids: list[str]) -> list[str]:
        async with open_queue(settings) as queue, running_worker(settings):
            found = await outcomes(queue, ids)
            await eventually(lambda: all_ended(queue))
            return found

    async def all_ended(queue: JobQueue) -> bool:
        return all(row["state"] in {"done", "failed"} for row in await queue.llm.batches.list())

    assert letta("list") == {"groups": [], "batches": []}
    ids = run(submit_texts("a", "please fail", "please garble"))
    (group,) = letta("list")["groups"]
    assert group["waiting"]["requests"] == 3
    assert run(work_through(ids)) == ["echo: a", "error invalid_prompt", "error malformed"]
    assert "echo: please garble" in letta("came", ids[2])["came"]
    assert "no malformed answer" in letta("came", ids[0], code=1)
    (batch,) = letta("list")["batches"]
    shown = letta("show", batch["id"])
    assert (shown["state"], shown["succeeded"], shown["failed"]) == ("done", 1, 2)
    assert (shown["provider_status"], shown["error"]) == ("completed", None)
    assert shown["usage"]["output"] > 0
    assert letta("retry", batch["id"]) == {"requests": 2}
    assert letta("retry", batch["id"]) == {"requests": 0}
    assert letta("cancel", "--group", "openai", "chat/completions", "m") == {"canceled": 2}
    assert letta("cancel", batch["id"]) == {"canceled": 0}
    assert letta("cancel", "--request", "req_unknown") == {"canceled": 0}
    assert "no batch" in letta("show", "unknown", code=1)
    letta("cancel", code=2)
    lines = CliRunner().invoke(main, ["batches", "list"]).stdout.splitlines()
    assert lines[0] == "no request waits"
    assert batch["id"] in lines[2]
