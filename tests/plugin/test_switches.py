"""Each half is switched at run time, by the server's key or by the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from letta_redis.plugin.switches import PluginSwitches, switch
from settings import Settings
from tests.support.servers import free_port
from tests.support.wait import eventually
from worker.keys import QueueKeys

pytestmark = pytest.mark.integration


@pytest.fixture
async def settings(valkey_url: str, client: Any, monkeypatch: Any, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    await client.delete(QueueKeys().switches)
    yield Settings(redis_url=valkey_url)
    await client.delete(QueueKeys().switches)


async def test_the_key_decides_over_the_environment(settings: Settings, client: Any) -> None:
    switches = PluginSwitches(settings)
    seen = []
    for state in ("off", "on", "default"):
        await switch(settings, "agent_cache", state)
        await switches.read(client)
        seen.append((switches.agent_cache, switches.redis_queue))

    assert seen == [(False, True), (True, True), (True, True)]
    assert not await client.exists(QueueKeys().switches)


async def test_a_half_that_is_off_by_the_environment_can_be_switched_on(
    settings: Settings, client: Any
) -> None:
    switches = PluginSwitches(settings.model_copy(update={"use_agent_cache": False}))
    assert not switches.agent_cache

    await switch(settings, "agent_cache", "on")
    await switches.read(client)

    assert switches.agent_cache


async def test_the_environment_is_read_again(
    settings: Settings, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    switches = PluginSwitches(settings)

    monkeypatch.setenv("LETTA_USE_AGENT_CACHE", "false")
    await switches.read(client)
    by_variable = switches.agent_cache
    monkeypatch.delenv("LETTA_USE_AGENT_CACHE")
    (tmp_path / ".env").write_text("LETTA_USE_REDIS_QUEUE=false\n")
    await switches.read(client)

    assert not by_variable
    assert switches.agent_cache
    assert not switches.redis_queue


async def test_a_wrong_setting_leaves_the_switches_as_they_were(
    settings: Settings, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches = PluginSwitches(settings)

    monkeypatch.setenv("LETTA_USE_AGENT_CACHE", "perhaps")
    await switches.read(client)

    assert switches.agent_cache


async def test_a_server_that_is_away_leaves_the_switches_as_they_were(
    settings: Settings, client: Any
) -> None:
    from cache.connection.pool import PoolOptions, open_pool

    switches = PluginSwitches(settings)
    await switch(settings, "agent_cache", "off")
    await switches.read(client)

    away = f"redis://127.0.0.1:{free_port()}/0"
    async with open_pool(away, PoolOptions(retries=0), name="away") as nobody:
        await switches.read(nobody)

    assert not switches.agent_cache


async def test_a_running_server_follows_the_key(settings: Settings) -> None:
    switches = PluginSwitches(settings)
    async with switches.followed(settings):
        await switch(settings, "agent_cache", "off")

        async def is_off() -> bool:
            return not switches.agent_cache

        await eventually(is_off, deadline_s=30)
