"""The functions behind `letta-workers cache`, and a cache from the settings."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cache import CacheOptions, admin, open_cache
from cache.invalidator import Invalidator
from settings import Settings
from tests.support.caches import PATIENT_S, Loader, cache_on
from tests.support.outages import fragile_server
from tests.support.wait import eventually

pytestmark = pytest.mark.integration

KEY = base64.b64encode(b"k" * 32).decode()


async def test_stats_name_counters_server_and_keys(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix) as cache:
        await cache.agents.get_or_load("a1", Loader(1), depends_on=["tag:t"], organisation="o")
        await cache.agents.sessions.set("a1", "s", 1)
        await cache.messages.get_or_load("a1", Loader([{"id": "m", "sequence_id": 1}]))
        report = await admin.stats(cache)
    json.dumps(report)
    assert report["counters"]["fills"] == 2
    assert report["server"]["used_memory"] > 0
    assert report["keys"] == {
        "counters": 1, "version": 1, "state": 1, "session": 1, "messages": 1, "window state": 1,
        "window window": 1, "dependency": 1, "organisation": 1,
    }  # fmt: skip


async def test_counters_of_all_processes_are_summed(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix) as ended:
        await ended.agents.get_or_load("a1", Loader(1))
    async with (
        cache_on(valkey_url, prefix, totals_interval_s=0.01) as running,
        cache_on(valkey_url, prefix) as asking,
    ):
        await running.agents.get("a1")
        await running.agents.get("a2")
        await asking.agents.get("a1")

        async def summed() -> bool:
            report = await admin.stats(asking)
            names = ("hits", "misses", "loads", "fills")
            return [report["counters"][name] for name in names] == [2, 2, 1, 1]

        await eventually(summed)
        assert await summed(), "asking twice adds nothing"


async def test_a_process_that_only_invalidates_adds_to_the_counters(
    valkey_url: str, prefix: str, client: Any
) -> None:
    async with cache_on(valkey_url, prefix) as asking:
        async with Invalidator(client, CacheOptions(prefix=prefix, timeout_s=PATIENT_S)) as other:
            await other.invalidate(agents=["a1", "a2"])
            async with other.writing(agents=["a1"]):
                pass
        totals = await asking.totals()
    assert totals["intents"] == 1
    assert totals["invalidations"] == 3


async def test_counters_of_an_outage_arrive_after_it(tmp_path: Path, prefix: str) -> None:
    with fragile_server(tmp_path) as server:
        async with cache_on(server.url, prefix, totals_interval_s=0.01) as cache:
            await cache.agents.get("a1")
            server.kill()
            await cache.agents.get("a1")
            server.start()
            await cache.settled()
            counted = cache.stats()
            totals = await cache.totals()
        assert {name: counted[name] for name in totals} == totals
        assert totals["outages"] == 1


async def test_counting_keys_has_an_end(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix) as cache:
        for number in range(5):
            await cache.agents.set(f"a{number}", 1)
        counts = await admin.count_keys(cache, limit=3)
        assert counts.pop("uncounted") == 1
        assert sum(counts.values()) == 3


async def test_invalidating_reaches_states_and_messages(valkey_url: str, prefix: str) -> None:
    async with cache_on(valkey_url, prefix) as cache:
        await cache.agents.set("a1", 1)
        await cache.agents.set("a2", 2, depends_on=["tag:t"])
        await cache.agents.set("a3", 3, depends_on=["block:b"])
        await cache.agents.set("a4", 4, organisation="o")
        await cache.agents.set("a5", 5)
        await cache.messages.get_or_load("a1", Loader([{"id": "m", "sequence_id": 1}]))
        done = await admin.invalidate(
            cache, agents=["a1"], tags=["t"], dependencies=["block:b"], organisations=["o"]
        )
        assert done == {"named": 4, "delivered": True}
        assert await cache.agents.get_many([f"a{n}" for n in range(1, 6)]) == {"a5": 5}
        assert await cache.agents.get("a4", organisation="o") is None
        assert await cache.messages.list("a1", limit=1) is None
        await admin.invalidate(cache, everything=True)
        assert await cache.agents.get("a5") is None


async def test_stats_report_that_the_server_is_away(tmp_path: Path, prefix: str) -> None:
    with fragile_server(tmp_path) as server:
        async with cache_on(server.url, prefix) as cache:
            server.kill()
            assert await admin.invalidate(cache, agents=["a1"], wait_s=0.01) == {
                "named": 1,
                "delivered": False,
            }
            report = await admin.stats(cache)
            assert "error" in report["server"]
            json.dumps(report)


@pytest.mark.parametrize("command", [admin.stats, partial(admin.invalidate, everything=True)])
@pytest.mark.parametrize("listens", [True, False])
async def test_a_command_ends_soon_without_a_server(command: Any, listens: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        port = server.getsockname()[1]
        if not listens:
            server.close()
        async with (
            asyncio.timeout(10),
            open_cache(Settings(redis_url=f"redis://127.0.0.1:{port}")) as cache,
        ):
            found = await command(cache)
    assert found.get("delivered") is False or "error" in found["server"]


async def test_warming_goes_through_the_agents(valkey_url: str, prefix: str) -> None:
    async def load(agent_id: str) -> str:
        return agent_id

    async with cache_on(valkey_url, prefix) as cache:
        assert await admin.warm(cache, ["a1", "a2"], load) == {"warmed": 2, "failed": 0}


@pytest.mark.parametrize("enabled", [True, False])
async def test_nothing_is_loaded_that_cannot_be_stored(
    tmp_path: Path, prefix: str, enabled: bool
) -> None:
    async def load(agent_id: str) -> str:
        raise AssertionError

    with fragile_server(tmp_path) as server:
        server.kill()
        async with cache_on(server.url, prefix, enabled=enabled) as cache:
            assert await admin.warm(cache, ["a1", "a2"], load) == {"warmed": 0, "failed": 2}


async def test_settings_make_the_cache(valkey_url: str) -> None:
    settings = Settings(
        redis_url="redis://127.0.0.1:1/0",
        cache_redis_url=valkey_url,
        cache_agent_ttl_s=7,
        cache_local_ttl_s=2,
        cache_encryption_keys=f"k1:{KEY}",
        cache_compress_min_bytes=100,
    )
    async with open_cache(settings) as cache:
        await cache.agents.set("settings-agent", {"secret": "PLAINSECRET" * 50})
        key = "lc:{settings-agent}:state:"
        raw: Any = await cache.client.get(key)
        assert len(raw) > 50
        assert b"PLAINSECRET" not in raw
        assert 0 < await cache.client.pttl(key) <= 7000
        assert (await cache.agents.get("settings-agent"))["secret"].startswith("PLAINSECRET")
        await cache.agents.invalidate("settings-agent")


async def test_a_setting_turns_the_cache_off(valkey_url: str) -> None:
    async with open_cache(Settings(redis_url=valkey_url, use_agent_cache=False)) as cache:
        loader = Loader(1)
        for _ in range(2):
            await cache.agents.get_or_load("switched-off", loader)
        assert loader.calls == 2
        assert await cache.agents.get("switched-off") is None


@pytest.mark.parametrize("keys", ["nonsense", "k1:short", f"k1:{KEY} k1:{KEY}", f":{KEY}"])
def test_wrong_encryption_keys_are_refused_without_being_shown(keys: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(cache_encryption_keys=keys)
    assert keys not in str(error.value)
