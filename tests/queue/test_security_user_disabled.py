"""A user that is disabled, or whose password changes, while everything runs: clear errors, nothing lost or charged."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cache import open_cache
from settings import Settings
from tests.support.queues import open_queue
from tests.support.users import NAME, RIGHTS, as_weak, set_rights
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import JobQueue, QueueUnavailable

pytestmark = pytest.mark.faults

REFUSED = "it refuses the user name or the password; correct those of the URL"
STEP: dict[str, asyncio.Event] = {}
RUNS: list[int] = []


async def hold(ctx: dict[str, Any]) -> int:
    RUNS.append(ctx["job_try"])
    STEP["begun"].set()
    await STEP["may_end"].wait()
    return len(RUNS)


@pytest.fixture
def settings(private_valkey_url: str) -> Settings:
    STEP.update(begun=asyncio.Event(), may_end=asyncio.Event())
    RUNS.clear()
    url = as_weak(private_valkey_url)
    return quick_settings(url, worker_functions=f"{__name__}:hold", worker_max_tries=1)


Change = tuple[tuple[str, ...], tuple[str, ...]]
CHANGES: dict[str, Change] = {
    "disabled": (("off",), ("on",)),
    "password": (("resetpass", ">other"), ("resetpass", ">pw")),
    "all_commands": (("-@all",), RIGHTS),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_all_goes_on_when_the_user_is_back(
    owner: Any, settings: Settings, change: str
) -> None:
    away, back = CHANGES[change]
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(open_queue(settings))
        cache = await stack.enter_async_context(open_cache(settings))
        await stack.enter_async_context(running_worker(settings))
        await cache.agents.set("a", {"n": 1})
        job = await queue.enqueue("hold")
        waiting = asyncio.create_task(job.result(timeout_s=60))
        await asyncio.wait_for(STEP["begun"].wait(), 30)

        await set_rights(owner, *away)
        if change != "all_commands":
            await owner.execute_command("CLIENT", "KILL", "USER", NAME)
        await refuses(queue, change)
        assert await cache.agents.get_or_load("a", loaded) == {"n": 2}
        assert not await cache.agents.invalidate("a")
        STEP["may_end"].set()  # its end cannot be stored now
        await eventually(lambda: counted(owner))
        await set_rights(owner, *back)

        await settle(waiting, job)
        assert RUNS == [1]
        assert not await queue.dead.list()
        await eventually(lambda: took(cache))
        STEP["begun"].clear()
        later = await queue.enqueue("hold")
        assert await later.result(timeout_s=60) == 2
        assert RUNS == [1, 1]


async def loaded() -> dict[str, int]:
    return {"n": 2}


async def refuses(queue: JobQueue, change: str) -> None:
    with pytest.raises(QueueUnavailable) as refusal:
        await queue.enqueue("hold")
    expected = "its user lacks a right" if change == "all_commands" else REFUSED
    assert expected in str(refusal.value)


async def counted(owner: Any) -> bool:
    """Whether the server has refused more than the test's own calls: the worker's as well."""
    stats = await owner.info("errorstats")
    return bool(sum(row["count"] for row in stats.values()) > 20)


async def settle(waiting: asyncio.Task[Any], job: Any) -> None:
    try:
        assert await asyncio.wait_for(waiting, 60) == 1
    except (QueueUnavailable, ConnectionError):
        assert await job.result(timeout_s=60) == 1


async def took(cache: Any) -> bool:
    await cache.agents.get_or_load("a", loaded)
    return bool(await cache.agents.get("a") == {"n": 2})


async def test_a_job_of_ours_is_not_charged_for_a_denied_command(
    owner: Any, settings: Settings, private_valkey_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    body = {"model": "m", "messages": ["hi"]}
    async with open_queue(quick_settings(private_valkey_url)) as queue, running_worker(settings):
        await queue.enqueue("hold")
        await asyncio.wait_for(STEP["begun"].wait(), 30)
        await set_rights(owner, "-lpop")  # seals a batch
        await queue.submit_llm_request(body, provider="openai", endpoint="/v1/chat/completions")
        await queue.flush_llm_batches()
        line = await eventually(lambda: logged(capfd, "job.postponed"))
        assert "allow it by ACL" in line
        assert await queue.llm.batches.list() == []
        await set_rights(owner, "+lpop")
        await eventually(queue.llm.batches.list)
        assert not await queue.dead.list()
        STEP["may_end"].set()


async def logged(capfd: pytest.CaptureFixture[str], event: str) -> str:
    return next((line for line in capfd.readouterr().err.splitlines() if event in line), "")
