"""Processes that the Letta server spawns have the plug-in, too."""

from __future__ import annotations

from importlib import import_module

import pytest

import letta_redis

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("plugin")]


async def what_is_installed(_: int) -> tuple[list[str], bool]:
    """Runs in the spawned process."""
    installation = letta_redis.installed()
    assert installation is not None
    before = installation.runtime.cache()
    opened = await installation.runtime.opened()
    return sorted(installation.halves), before is None and opened is not None


async def test_a_spawned_process_opens_the_plugin_at_its_first_use(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", valkey_url)
    pool = import_module("letta.agents.letta_agent_batch").Pool

    async with pool(processes=1) as children:
        found = await children.map(what_is_installed, [1])

    assert found == [(["cache", "queue"], True)]
