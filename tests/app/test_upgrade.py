"""What an earlier release left on its server is worked off by this one."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cache.connection.pool import PoolOptions, open_pool
from tests.support import earlier
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import Priority
from worker import open_queue as open_real_queue
from worker.demo.serving import running

pytestmark = pytest.mark.integration

# Made by tests/support/earlier.py in a checkout of the commit that it names.
SAVED = json.loads((Path(__file__).parents[1] / "data" / "earlier.json").read_text())


async def test_work_of_an_earlier_release_ends_here(private_valkey_url: str) -> None:
    received: Counter[str] = Counter()
    earlier.ran.clear()
    earlier.held.set()
    async with open_pool(private_valkey_url, PoolOptions(), name="test") as client:
        ids = await earlier.load(SAVED, client)
    with running("worker.demo.openai_server") as provider:
        settings = quick_settings(
            private_valkey_url,
            worker_functions=earlier.FUNCTIONS,
            openai_base_url=f"{provider}/v1",
            llm_batch_cron="* * * * * *",
        )
        async with (
            await asyncio.start_server(receiver_of(received), *earlier.RECEIVER),
            open_real_queue(settings) as queue,
        ):
            letter = await queue.dead.get(ids["dead"])
            assert letter is not None
            assert letter.reason == "permanent"
            assert await queue.dead.retry(ids["dead"]) == 1
            # A pause is kept over an upgrade.
            assert {pause.priority for pause in await queue.paused()} == set(Priority)
            for priority in Priority:
                await queue.resume(priority=priority)
            async with running_worker(settings):
                await all_end(queue, ids, received)


async def all_end(queue: Any, ids: dict[str, Any], received: Counter[str]) -> None:
    wanted = {*ids["texts"], "hold"}

    async def jobs_ran() -> bool:
        return wanted <= set(earlier.ran)

    await eventually(jobs_ran, deadline_s=90)
    await eventually(lambda: queue.dead.get(ids["dead"]), deadline_s=90)
    for id_ in (*ids["webhooks"], ids["tried"]):
        await delivered(queue, id_)
    assert set(received) == {"/tried", "/0", "/1", "/2"}
    for id_, text in ids["requests"].items():
        answer = await queue.llm_result(id_, timeout_s=90)
        assert answer["choices"][0]["message"]["content"] == f"echo: {text}"
    # One run each: what had ended before did not run again.
    assert Counter(earlier.ran) == Counter(wanted)


async def delivered(queue: Any, id_: str) -> None:
    """Wait until it is. The saved work ages: past its deadline a delivery is dead, until a replay."""

    async def look(*states: str) -> str | None:
        state = str((await queue.delivery(id_)).state)
        return state if state in states else None

    if await eventually(lambda: look("delivered", "dead"), deadline_s=90) == "dead":
        await queue.webhooks.replay(id_)
        await eventually(lambda: look("delivered"), deadline_s=90)


def receiver_of(received: Counter[str]) -> Any:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        received[head.split()[1]] += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    return answer


def test_the_saved_work_names_the_commit_that_left_it() -> None:
    assert len(SAVED["commit"]) == 40
