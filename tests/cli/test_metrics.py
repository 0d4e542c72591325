"""`letta-workers metrics`: the table, its filters, and the JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from arq.worker import func
from click.testing import CliRunner

from cache.connection.pool import PoolOptions, open_pool
from tests.support.engine import burst
from tests.support.queues import queue_of
from worker import Priority
from worker.cli.commands import main

pytestmark = pytest.mark.acceptance


async def quick(ctx: dict[str, Any]) -> None: ...


async def run_jobs(url: str) -> None:
    async with open_pool(url, PoolOptions(), name="test") as client:
        queue = queue_of(client, "arq:")
        for priority in (Priority.HIGH, Priority.HIGH, Priority.LOW):
            await queue.enqueue("quick", priority=priority)
        await queue.enqueue("nobody_has_it")
        await burst(client, "arq:", [func(quick, name="quick")])


def test_metrics_show_how_jobs_ended(
    private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)

    def shown(*words: str) -> Any:
        return CliRunner().invoke(main, ["metrics", *words])

    assert shown().output == "no job ended\n"
    asyncio.run(run_jobs(private_valkey_url))
    head, unknown, high, low = shown().output.splitlines()
    assert head.split()[:5] == ["function", "priority", "completed", "retried", "dead"]
    assert unknown.split()[:5] == ["<unknown>", "default", "0", "0", "1"]
    assert unknown.split()[-4:] == ["-"] * 4
    assert high.split()[:3] == ["quick", "high", "2"]
    assert low.split()[:3] == ["quick", "low", "1"]
    assert len({len(line) for line in (head, unknown, high, low)}) == 1
    (one,) = json.loads(shown("--priority", "low", "--since", "2d", "--json").output)
    assert (one["function"], one["counts"]["completed"]) == ("quick", 1)
    assert one["spans"][0]["counts"]["run"]["counts"]
    assert shown("--function", "other").output == "no job ended\n"
    assert shown("--since", "soon").exit_code == 2
