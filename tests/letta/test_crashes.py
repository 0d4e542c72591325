"""A callback arrives and its columns say so, whoever is killed on its way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import letta_redis
from letta_redis.plugin.install import Installation
from settings import Settings
from tests.letta.agents import Agents
from tests.letta.dying import STEPS
from tests.letta.postgres import ROOT
from tests.letta.test_callbacks import end_run, ended, new_run
from tests.letta.workers import Receiver, receiver, workers
from tests.support.wait import eventually

pytestmark = pytest.mark.faults

_DEADLINE_S = 300.0


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def dying(letta: str, valkey_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = os.environ | {"LETTA_REDIS_URL": valkey_url, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", "tests.letta.dying",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env=environment, cwd=ROOT,
    )  # fmt: skip
    yield process
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def answer(process: asyncio.subprocess.Process) -> str:
    """Its next line, without what Letta prints."""
    assert process.stdout is not None
    async with asyncio.timeout(_DEADLINE_S):
        while line := (await process.stdout.readline()).decode().strip():
            if line == "ready" or line.isdigit():
                return line
    raise AssertionError("the process has ended")


async def test_a_server_is_killed_at_each_step(
    agents: Agents, valkey_url: str, hook: Receiver, dying: asyncio.subprocess.Process
) -> None:
    assert dying.stdin is not None
    assert await answer(dying) == "ready"
    runs = {step: await new_run(agents, hook.url) for step in STEPS}
    with workers(valkey_url):
        for step, run in runs.items():
            order = {"step": step, "user": agents.user.id, "run": run.id}
            dying.stdin.write(json.dumps(order).encode() + b"\n")
            assert int(await answer(dying)) == signal.SIGKILL, step

        # Another server of the fleet finds what they left.
        installation = letta_redis.install(Settings(redis_url=valkey_url))
        await installation.runtime.start()
        try:
            outcomes = installation.runtime.outcomes()
            assert outcomes is not None
            await outcomes.sweep(older_than_s=0)
            for step, run in runs.items():
                assert (step, await ended(run.id)) == (step, (200, None))
        finally:
            await installation.runtime.stop()
            letta_redis.uninstall()

    assert set(hook.ids()) == {f"{run.id}:completed" for run in runs.values()}


@pytest.mark.parametrize("is_answered", [False, True])
async def test_a_worker_is_killed_while_it_posts(
    agents: Agents, valkey_url: str, plugin: Installation, hook: Receiver, *, is_answered: bool
) -> None:
    run = await new_run(agents, hook.url)
    with workers(valkey_url, worker_lease_s="5") as supervisor:
        hook.answers.clear()
        await end_run(agents, run)
        assert plugin.runtime.callbacks == {"stored": 1}

        async def posted() -> bool:
            return bool(hook.got)

        await eventually(posted, deadline_s=_DEADLINE_S)
        found = workers_of(supervisor.pid)
        assert found
        # Stopped, it cannot note the answer that arrives.
        for worker in found:
            os.kill(worker, signal.SIGSTOP)
        if is_answered:
            hook.answers.set()
            await hook.answered.wait()
        for worker in found:
            os.kill(worker, signal.SIGKILL)
        hook.answers.set()
        assert await ended(run.id) == (200, None)

    assert set(hook.ids()) == {f"{run.id}:completed"}
    assert len(hook.got) >= 2


def workers_of(pid: int) -> list[int]:
    """The processes below a supervisor that have none below them."""
    lists = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    children = [int(child) for found in lists for child in found]
    return [leaf for child in children for leaf in workers_of(child) or [child]]
