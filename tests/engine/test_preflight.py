"""A worker starts only where it can work, and says why it does not; a full server is no reason."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog

from cache.connection.pool import PoolOptions, open_pool
from cache.errors import RedisRefused
from tests.support.engine import burst, new_worker, running
from tests.support.servers import free_port, valkey
from tests.support.wait import eventually
from worker.cli.health import live_workers

pytestmark = pytest.mark.integration

# As SECURITY.md lists them.
RIGHTS = ("~arq:*", "resetchannels", "&arq:*", "+@all", "-@dangerous", "+info")


async def double(ctx: dict[str, Any], n: int) -> int:
    return 2 * n


@pytest.mark.parametrize(
    "rights",
    [
        ("~other:*", *RIGHTS[1:]),
        (*RIGHTS, "-info"),
        (*RIGHTS, "-time"),
        (*RIGHTS, "-@scripting"),
    ],
    ids=["keys", "info", "time", "scripts"],
)
async def test_a_user_without_the_rights_is_refused(
    client: Any, valkey_url: str, prefix: str, rights: tuple[str, ...]
) -> None:
    user = prefix.rstrip(":")
    await client.execute_command("ACL", "SETUSER", user, "on", ">pw", *rights)
    url = valkey_url.replace("unix://", f"unix://{user}:pw@")
    async with open_pool(url, PoolOptions(), name="t") as weak, asyncio.timeout(5):
        with pytest.raises(RedisRefused, match="lacks a right"):
            await new_worker(weak, "arq:", [double]).main()
    await client.execute_command("ACL", "DELUSER", user)


async def test_the_documented_rights_are_enough(private_valkey_url: str) -> None:
    async with open_pool(private_valkey_url, PoolOptions(), name="t") as owner:
        await owner.execute_command("ACL", "SETUSER", "worker", "on", ">pw", *RIGHTS)
    url = private_valkey_url.replace("unix://", "unix://worker:pw@")
    async with open_pool(url, PoolOptions(), name="t") as client:
        await burst(client, "arq:", [double])


async def test_a_node_of_a_cluster_is_refused(tmp_path: Path) -> None:
    with valkey(tmp_path, "--cluster-enabled", "yes") as port:
        url = f"redis://127.0.0.1:{port}/0"
        async with open_pool(url, PoolOptions(), name="t") as client:
            with pytest.raises(RedisRefused, match="node of a cluster"):
                await new_worker(client, "arq:", [double]).main()


async def test_a_service_without_a_needed_command_is_refused_by_name(tmp_path: Path) -> None:
    with valkey(tmp_path, "--rename-command", "BZPOPMIN", "") as port:
        async with open_pool(f"redis://127.0.0.1:{port}/0", PoolOptions(), name="t") as client:
            with pytest.raises(RedisRefused, match=r"it lacks BZPOPMIN.*docs/operations\.md"):
                await new_worker(client, "arq:", [double]).main()


async def test_a_worker_on_a_full_server_is_alive(private_valkey_url: str) -> None:
    async with open_pool(private_valkey_url, PoolOptions(), name="t") as client:
        await client.config_set("maxmemory", 1)
        async with running(client, "arq:", [double], health_check_interval=1):

            async def alive() -> bool:
                return bool(await live_workers(client)) and bool(
                    await client.get("arq:queue:health-check")
                )

            await eventually(alive)


async def test_an_outage_at_the_start_names_the_servers_url() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    async with open_pool(url, PoolOptions(retries=0), name="t") as client:
        worker = new_worker(client, "arq:", [double])
        with structlog.testing.capture_logs() as logs:
            main = asyncio.create_task(worker.main())

            async def logged() -> bool:
                return bool(logs)

            await eventually(logged)
            worker.drain()
            await main
    assert [(line["event"], line.get("url")) for line in logs[:1]] == [("redis.unreachable", url)]
