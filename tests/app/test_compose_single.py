"""compose/single.yaml: queue and cache share a server that evicts nothing, and no job pays for it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache import open_cache
from cache.connection.pool import PoolOptions, open_pool
from settings import Settings, load_settings, variable_name
from tests.support.compose import COMPOSE, directive, made_secrets, server_of, services
from tests.support.queues import open_queue

pytestmark = pytest.mark.acceptance

TEXT = (COMPOSE / "single.yaml").read_text()
# As compose fills it: each variable with its default.
OVERRIDE: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", TEXT))
CLIENTS = ("letta", "letta-workers", "letta-web")
MOST = 16 * 2**20


@pytest.mark.parametrize("name", CLIENTS)
def test_every_client_has_its_cache_on_the_queues_server(name: str) -> None:
    given = OVERRIDE["services"][name]
    found = services()
    before = found[name]["environment"]

    assert given["environment"]["LETTA_CACHE_REDIS_URL"] == before["LETTA_REDIS_URL"]
    assert set(given["environment"]) <= {variable_name(field) for field in Settings.model_fields}
    # Otherwise it would wait for a server that nobody starts.
    assert given["depends_on"]["valkey-cache"]["required"] is False
    assert OVERRIDE["services"]["valkey-cache"]["profiles"] == ["two-servers"]
    assert set(CLIENTS) == {key for key in found if "LETTA_REDIS_URL" in str(found[key])}
    assert directive(COMPOSE / "valkey-queue.conf", "maxmemory-policy") == "noeviction"


async def test_a_full_cache_costs_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the users and the settings of the file, the cache is offered more than the server has."""
    secrets = made_secrets(tmp_path)
    monkeypatch.setenv("LETTA_SECRETS_DIR", str(secrets))
    users = Path(OVERRIDE["secrets"]["valkey-queue-users.conf"]["file"]).name
    found = re.fullmatch(r"valkey-(\w+)-users.conf", users)
    assert found
    given = services()["letta"]["environment"] | OVERRIDE["services"]["letta"]["environment"]
    with server_of("queue", tmp_path, secrets, "--maxmemory", str(MOST), users=found[1]) as port:
        for variable, value in given.items():
            address = str(value).replace("valkey-queue:6379", f"127.0.0.1:{port}")
            monkeypatch.setenv(variable, address)
        settings = load_settings(cache_timeout_s=5)
        password = (secrets / "valkey_operator_password").read_text()
        url = f"redis://operator:{password}@127.0.0.1:{port}/0"
        async with (
            open_pool(url, PoolOptions(), name="test") as client,
            open_queue(settings) as queue,
            open_cache(settings) as cache,
        ):
            jobs = [await queue.enqueue("anything", "x" * 500) for _ in range(100)]
            text = random.Random(7).randbytes(50_000).hex()
            for n in range(200):
                await cache.agents.set(f"agent-{n}", {"text": text})
            assert cache.stats()["without_room"] > 0
            memory = await client.info("memory")
            assert memory["used_memory"] < 0.6 * MOST
            jobs.append(await queue.enqueue("anything"))
            assert {(await job.status()).value for job in jobs} == {"queued"}
            assert (await client.info("stats"))["evicted_keys"] == 0
            assert -1 not in {await client.ttl(key) async for key in client.scan_iter("lc:*")}
            assert await client.execute_command("ACL", "LOG") == []
