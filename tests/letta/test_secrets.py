"""No secret of an agent is on the cache's server in clear."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

import pytest

import letta_redis
from letta_redis.plugin.install import Installation
from settings import Settings
from tests.letta.agents import Agents, counted_sql

pytestmark = pytest.mark.acceptance

SECRET = "a secret that nobody may see"
KEY = "key:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.fixture
async def sealed_plugin(letta: str, valkey_url: str) -> AsyncIterator[Installation]:
    """The plug-in with a keyring of ours."""
    installation = letta_redis.install(Settings(redis_url=valkey_url, cache_encryption_keys=KEY))
    await installation.runtime.start()
    yield installation
    await installation.runtime.stop()
    letta_redis.uninstall()


async def stored(cache: Any) -> bytes:
    """Everything that is on the server."""
    keys = await cache.client.keys("*")
    strings = [key for key in keys if await cache.client.type(key) == b"string"]
    return b"".join([value or b"" for value in await cache.client.mget(strings)])


async def test_secrets_stay_encrypted_on_the_server(agents: Agents, cache: Any) -> None:
    agent = await agents.create(secrets={"TOKEN": SECRET})

    read = [await agents.manager.get_agent_by_id_async(agent.id, agents.user) for _ in range(2)]
    with counted_sql() as statements:
        hit = await agents.manager.get_agent_by_id_async(agent.id, agents.user)

    assert statements == []
    for state in (*read, hit):
        assert [variable.value for variable in state.secrets] == [SECRET]
        assert state.secrets[0] is state.tool_exec_environment_variables[0]
    data = await stored(cache)
    assert agent.id.encode() in data
    assert SECRET.encode() not in data


async def test_a_secret_that_letta_stores_in_clear_is_not_cached(
    agents: Agents, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("letta.settings").settings, "encryption_key", None)
    agent = await agents.create(secrets={"TOKEN": SECRET})

    for _ in range(2):
        state = await agents.manager.get_agent_by_id_async(agent.id, agents.user)
        (listed,) = await agents.manager.get_agents_by_ids_async([agent.id], agents.user)
        assert [v.value for v in (*state.secrets, *listed.secrets)] == [SECRET, SECRET]

    assert SECRET.encode() not in await stored(cache)


async def test_a_secret_in_clear_is_cached_under_keys_of_ours(
    agents: Agents, sealed_plugin: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("letta.settings").settings, "encryption_key", None)
    agent = await agents.create(secrets={"TOKEN": SECRET})
    await agents.manager.get_agent_by_id_async(agent.id, agents.user)

    with counted_sql() as statements:
        state = await agents.manager.get_agent_by_id_async(agent.id, agents.user)

    assert statements == []
    assert [variable.value for variable in state.secrets] == [SECRET]
    assert SECRET.encode() not in await stored(sealed_plugin.runtime.cache())
