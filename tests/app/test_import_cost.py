"""What importing the library and running a probe load: modules are counted, not seconds."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from cache.connection.pool import PoolOptions, open_pool
from tests.support.servers import run
from worker.keys import QueueKeys

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
# Above what is loaded today by about a tenth. A large package adds hundreds.
MOST = {"package": 20, "names": 60, "client": 460, "probe": 110, "probe_env": 135}

LIBRARY = """
import json, sys
at_start = set(sys.modules)
loaded = lambda: sorted(set(sys.modules) - at_start)
import letta_redis
found = {"package": loaded()}
from letta_redis import JobFailed, Priority, RedisUnavailable, Transient, call, open_cache, open_queue
found["names"] = loaded()
from letta_redis import Cache, Job, JobQueue
found["client"] = loaded()
print(json.dumps(found))
"""
PROBE = """
import json, sys
at_start = set(sys.modules)
sys.argv = ["letta-workers", "health"]
from letta_redis.worker.cli import main
try:
    main()
except SystemExit:
    pass
print(json.dumps({"probe": sorted(set(sys.modules) - at_start)}))
"""
# What each may not load, by top-level name.
HEAVY = {"aiohttp", "arq", "click", "httpx", "jinja2", "pydantic", "rich", "structlog"}
IO = {"asyncio", "redis", "msgspec"}


def loaded(program: str, cwd: Path = ROOT, **environ: str) -> dict[str, list[str]]:
    done = run([sys.executable, "-c", program], cwd=cwd, env={**os.environ, **environ})
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_the_library_loads_only_what_it_uses() -> None:
    found = loaded(LIBRARY)

    assert not tops(found["names"]) & (HEAVY | IO)
    assert not tops(found["client"]) & HEAVY
    for step, modules in found.items():
        assert len(modules) <= MOST[step], f"{step}: {len(modules)} modules: {modules}"


async def test_a_health_probe_loads_no_client_and_no_settings(private_valkey_url: str) -> None:
    keys = QueueKeys()
    async with open_pool(private_valkey_url, PoolOptions(), name="test") as client:
        await client.zadd(keys.workers, {"w1": 1})
        await client.set(
            keys.worker("w1"), json.dumps({"worker_id": "w1", "host": socket.gethostname()})
        )

    modules = loaded(PROBE, LETTA_REDIS_URL=private_valkey_url)["probe"]

    assert not tops(modules) & (HEAVY | IO)
    assert len(modules) <= MOST["probe"], f"{len(modules)} modules: {modules}"


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1/0", "redis+cluster://127.0.0.1:1", "embedded://", "embedded:///no"]
)
def test_a_health_probe_explains_an_outage_as_lightly(url: str) -> None:
    modules = loaded(PROBE, LETTA_REDIS_URL=url)["probe"]

    assert not tops(modules) & (HEAVY | IO)
    assert len(modules) <= MOST["probe"], f"{len(modules)} modules: {modules}"


def test_a_health_probe_reads_an_env_file_without_the_settings(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LETTA_REDIS_URL=redis://127.0.0.1:1/0\n")

    modules = loaded(PROBE, tmp_path, PYTHONPATH=str(ROOT))["probe"]

    assert not tops(modules) & (HEAVY | IO)
    assert len(modules) <= MOST["probe_env"], f"{len(modules)} modules: {modules}"


def tops(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}
