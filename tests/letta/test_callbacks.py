"""Tests that Letta's callbacks go through the queue, and that its columns say what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from letta_redis.plugin import rows
from letta_redis.plugin.install import Installation
from letta_redis.plugin.outcomes import Outcomes
from letta_redis.plugin.receivers import warn_of_refused
from settings import Settings
from tests.letta.agents import Agents
from tests.letta.workers import Receiver, receiver, workers
from tests.support.wait import eventually
from worker.keys import QueueKeys

LONG_S = 180.0


@pytest.fixture(scope="module")
def worker(valkey_url: str) -> Iterator[None]:
    with workers(valkey_url, webhook_max_attempts="1", webhook_bearers=f"step-token@{STEP_URL}"):
        yield


# A port that the step tests' own receiver listens on is not known when the worker starts.
STEP_URL = "http://127.0.0.1:1/step"


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def outcomes(plugin: Installation) -> Outcomes:
    found = plugin.runtime.outcomes()
    assert found is not None
    return found


async def new_run(agents: Agents, url: str, **more: Any) -> Any:
    from letta.schemas.run import Run
    from letta.services.run_manager import RunManager

    agent = await agents.create()
    given = {"agent_id": agent.id, "callback_url": url, "metadata": {"key": "value"}, **more}
    return await RunManager().create_run(pydantic_run=Run(**given), actor=agents.user)


async def end_run(agents: Agents, run: Any, status: str = "completed", **more: Any) -> Any:
    from letta.schemas.run import RunUpdate
    from letta.services.run_manager import RunManager

    update = RunUpdate(status=status, stop_reason="end_turn", **more)
    return await RunManager().update_run_by_id_async(run.id, update, actor=agents.user)


async def new_job(agents: Agents, url: str) -> Any:
    from letta.schemas.job import Job
    from letta.services.job_manager import JobManager

    job = Job(user_id=agents.user.id, callback_url=url, metadata={"key": "value"})
    return await JobManager().create_job_async(pydantic_job=job, actor=agents.user)


async def columns(owner: str) -> tuple[Any, Any, Any]:
    """When the callback was sent, the code, and the error."""
    from letta.server.db import db_registry
    from sqlalchemy import text

    table = "runs" if owner.startswith("run-") else "jobs"
    names = "callback_sent_at, callback_status_code, callback_error"
    async with db_registry.async_session() as session:
        found = await session.execute(
            text(f"SELECT {names} FROM {table} WHERE id = :id"), {"id": owner}
        )
        row = found.one()
        return row[0], row[1], row[2]


async def change(statement: str, **values: Any) -> None:
    """Change a row as a crash would have left it."""
    from letta.server.db import db_registry
    from sqlalchemy import text

    async with db_registry.async_session() as session:
        await session.execute(text(statement), values)


async def ended(owner: str) -> tuple[int | None, str | None]:
    """The code and the error, once an outcome was written."""

    async def look() -> bool:
        sent_at, code, _ = await columns(owner)
        return sent_at is not None and code != rows.STORED

    await eventually(look, deadline_s=LONG_S)
    _, code, error = await columns(owner)
    return code, error


@pytest.mark.usefixtures("worker", "plugin")
async def test_a_run_is_called_back_with_what_it_answered(agents: Agents, hook: Receiver) -> None:
    run = await new_run(agents, hook.url)
    updated = await end_run(agents, run)
    assert updated.callback_status_code == rows.STORED
    assert await ended(run.id) == (200, None)
    ((headers, body),) = hook.got
    assert headers["webhook-id"] == f"{run.id}:completed"
    assert (body["run_id"], body["status"]) == (run.id, "completed")
    assert body["metadata"]["key"] == "value"
    assert body["metadata"]["result"]["stop_reason"]["stop_reason"] == "end_turn"


@pytest.mark.usefixtures("worker", "plugin")
async def test_a_job_is_called_back(agents: Agents, hook: Receiver) -> None:
    from letta.schemas.job import JobUpdate
    from letta.services.job_manager import JobManager

    job = await new_job(agents, hook.url)
    await JobManager().update_job_by_id_async(job.id, JobUpdate(status="failed"), agents.user)
    assert await ended(job.id) == (200, None)
    assert hook.ids() == [f"{job.id}:failed"]


@pytest.mark.usefixtures("worker", "plugin")
async def test_a_failure_is_written_with_its_reason(agents: Agents, hook: Receiver) -> None:
    hook.status = 500
    run = await new_run(agents, hook.url)
    await end_run(agents, run)
    code, error = await ended(run.id)
    assert code == 500
    assert error is not None
    assert "after 1 attempts" in error


@pytest.mark.usefixtures("worker", "plugin")
async def test_two_updates_to_one_status_post_once(agents: Agents, hook: Receiver) -> None:
    run = await new_run(agents, hook.url)
    await asyncio.gather(end_run(agents, run), end_run(agents, run), return_exceptions=True)
    await ended(run.id)
    assert hook.ids() == [f"{run.id}:completed"]


@pytest.mark.usefixtures("plugin")
async def test_without_a_url_nothing_is_posted(agents: Agents, outcomes: Outcomes) -> None:
    run = await new_run(agents, "None")
    await end_run(agents, run)
    _, code, error = await columns(run.id)
    assert (code, error) == (None, "no callback URL was given")


@pytest.mark.usefixtures("worker")
async def test_what_a_crash_left_unsent_is_swept(
    agents: Agents, hook: Receiver, outcomes: Outcomes
) -> None:
    run = await new_run(agents, hook.url)
    jobs = {status: await new_job(agents, hook.url) for status in ("cancelled", "expired")}
    sql = "UPDATE runs SET status = 'completed', completed_at = now(), metadata_ = NULL"
    await change(f"{sql} WHERE id = :id", id=run.id)
    for status, job in jobs.items():
        await change("UPDATE jobs SET status = :s WHERE id = :id", s=status, id=job.id)
    assert await outcomes.sweep(older_than_s=0) == 3
    for owner in (run, *jobs.values()):
        assert await ended(owner.id) == (200, None)
    wanted = {f"{run.id}:completed", *(f"{job.id}:{status}" for status, job in jobs.items())}
    assert set(hook.ids()) == wanted
    assert await outcomes.sweep(older_than_s=0) == 0


@pytest.mark.usefixtures("worker")
async def test_a_callback_that_nobody_noted_is_not_sent_twice(
    agents: Agents, hook: Receiver, outcomes: Outcomes
) -> None:
    run = await new_run(agents, hook.url)
    await end_run(agents, run)
    await ended(run.id)
    # As if the server had died after it stored the callback, and before it noted 202.
    await change(
        "UPDATE runs SET callback_sent_at = NULL, callback_status_code = NULL WHERE id = :id",
        id=run.id,
    )
    assert await outcomes.sweep(older_than_s=0) == 1
    assert await ended(run.id) == (200, None)
    assert len(hook.got) == 1


@pytest.mark.usefixtures("worker")
async def test_a_callback_that_the_server_lost_is_sent_again(
    agents: Agents, hook: Receiver, outcomes: Outcomes
) -> None:
    run = await new_run(agents, hook.url)
    await change(
        "UPDATE runs SET status = 'completed', completed_at = now(), callback_sent_at = now(),"
        " callback_status_code = 202 WHERE id = :id",
        id=run.id,
    )
    await outcomes.expect(f"{run.id}:completed")

    async def forgotten() -> bool:
        return (await columns(run.id))[0] is None

    await eventually(forgotten, deadline_s=LONG_S)
    assert await outcomes.sweep(older_than_s=0) == 1
    assert await ended(run.id) == (200, None)


async def test_what_the_queue_refuses_is_posted_inline(
    agents: Agents, hook: Receiver, plugin: Installation
) -> None:
    run = await new_run(agents, hook.url, metadata={"long": "x" * 2_000_000})
    await end_run(agents, run)
    assert (await columns(run.id))[1:] == (200, None)
    assert hook.ids() == [""]
    assert plugin.runtime.callbacks == {"inline: PayloadTooLarge": 1}


async def test_a_half_that_is_off_posts_as_letta_does(
    agents: Agents, hook: Receiver, plugin: Installation, valkey_url: str
) -> None:
    async with Redis.from_url(valkey_url) as client:
        await client.hset(QueueKeys().switches, "redis_queue", "off")
        await plugin.runtime.switches.read(client)
    run = await new_run(agents, hook.url)
    await end_run(agents, run)
    assert not plugin.runtime.callbacks
    assert (await columns(run.id))[1:] == (200, None)
    assert hook.ids() == [""]
    async with Redis.from_url(valkey_url) as client:
        await client.delete(QueueKeys().switches)


async def test_private_receivers_are_named_at_the_start(
    agents: Agents, plugin: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", "http://10.1.2.3/step")
    for url in ("http://10.9.9.9:8080/a", "http://1.1.1.1/b", "https://1.1.1.1:6379/c"):
        await new_run(agents, url)
    given = Settings(webhook_allow_cidrs="10.9.0.0/16")
    refused = await warn_of_refused(given)
    assert {"10.1.2.3", "1.1.1.1"} <= set(refused)
    assert "10.9.9.9" not in refused


@pytest.mark.usefixtures("worker")
async def test_a_step_is_announced(
    plugin: Installation, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from letta.services.webhook_service import WebhookService

    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", hook.url)
    monkeypatch.setenv("STEP_COMPLETE_KEY", "step-token")
    assert await WebhookService().notify_step_complete("step-1")

    async def arrived() -> bool:
        return bool(hook.got)

    await eventually(arrived, deadline_s=LONG_S)
    ((headers, body),) = hook.got
    assert (headers["webhook-id"], body) == ("step-1:completed", {"step_id": "step-1"})
    assert "authorization" not in headers
    assert plugin.runtime.callbacks == {"stored": 1}
