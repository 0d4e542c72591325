"""
Each way of waking an idle worker, alone: here periodic polls are a minute apart.

With another worker's id in the listener key, a worker has only the wake token.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from arq.worker import func

from cache.encoding import codec
from tests.support.engine import running
from tests.support.queues import queue_of
from tests.support.wait import eventually
from worker import call
from worker.engine import EngineOptions
from worker.engine.poller import Poller
from worker.keys import EngineKeys, QueueKeys

pytestmark = pytest.mark.integration

SELDOM = EngineOptions(poll_s=60.0, heartbeat_s=60.0)


@pytest.fixture
async def without_listener(client: Any, prefix: str) -> None:
    """Let no worker of this prefix listen for changes."""
    await client.set(EngineKeys(QueueKeys(prefix)).listener, "another worker")


class Runs:
    def __init__(self) -> None:
        self.now: set[str] = set()
        self.go = asyncio.Event()

    async def hold(self, ctx: dict[str, Any]) -> str:
        self.now.add(ctx["worker_id"])
        await self.go.wait()
        return str(ctx["job_id"])


async def _idle(client: Any, workers: int) -> bool:
    """Whether so many workers are idle and wait for a token."""
    return bool((await client.info("clients"))["blocked_clients"] == workers)


@pytest.mark.usefixtures("without_listener")
async def test_an_enqueue_wakes_a_worker_by_its_token_alone(client: Any, prefix: str) -> None:
    runs = Runs()
    runs.go.set()
    queue = queue_of(client, prefix)
    async with running(client, prefix, [func(runs.hold, name="hold")], options=SELDOM):
        for _ in range(3):
            await eventually(lambda: _idle(client, 1))
            job = await queue.enqueue("hold")
            assert await job.result(timeout_s=20) == job.id


@pytest.mark.usefixtures("without_listener")
async def test_a_worker_that_leaves_due_jobs_wakes_another(client: Any, prefix: str) -> None:
    runs = Runs()
    queue = queue_of(client, prefix)
    functions = [func(runs.hold, name="hold")]
    async with (
        running(client, prefix, functions, options=SELDOM, max_jobs=1),
        running(client, prefix, functions, options=SELDOM, max_jobs=1),
    ):
        await eventually(lambda: _idle(client, 2))
        # One call pushes one token; the first worker pushes the next.
        await queue.enqueue_many([call("hold")] * 2)
        await eventually(lambda: _both(runs), deadline_s=20)
        runs.go.set()


async def _both(runs: Runs) -> bool:
    return len(runs.now) == 2


async def test_a_job_without_a_token_wakes_the_worker_that_listens(
    client: Any, prefix: str
) -> None:
    runs = Runs()
    runs.go.set()
    keys = EngineKeys(QueueKeys(prefix))
    async with running(client, prefix, [func(runs.hold, name="hold")], options=SELDOM):

        async def listens() -> bool:
            trackers = [c for c in await client.client_list() if "t" in c["flags"]]
            return bool(trackers) and await _idle(client, 1)

        await eventually(listens, deadline_s=20)
        # As stock arq's client stores it.
        body: dict[str, Any] = {
            "t": None,
            "f": "hold",
            "a": [],
            "k": {},
            "et": int(time.time() * 1000),
        }
        await client.set(keys.base.job("stock"), codec.encode(body))
        await client.zadd(keys.default_queue, {"stock": time.time() * 1000})
        await eventually(lambda: client.exists(keys.base.result("stock")), deadline_s=20)


async def test_a_worker_that_parked_a_job_lets_others_try_it_first(
    client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    wait = Poller.wait_for_kick

    async def noted(poller: Poller, wait_s: float) -> bool:
        waits.append(wait_s)
        return await wait(poller, wait_s)

    monkeypatch.setattr(Poller, "wait_for_kick", noted)
    monkeypatch.setattr("worker.engine.poller.YIELD_S", 30.0)
    await queue_of(client, prefix).enqueue("of_another_release")
    async with running(client, prefix, [func(Runs().hold, name="hold")], options=SELDOM):

        async def waits_longer_than_any_pause() -> bool:
            parked = await client.hlen(QueueKeys(prefix).parked)
            return bool(parked) and 30 < waits[-1] < 50

        await eventually(waits_longer_than_any_pause)
