"""A command that is canceled, or loses its connection, at any step of the loop ends as it should."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.exceptions import ConnectionError as RedisConnectionError

from cache.connection.pool import PoolOptions, close_client, open_pool
from cache.connection.siblings import sibling
from tests.support.servers import tls_in_front, valkey
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


async def canceled_at(client: Any, steps: int) -> tuple[bool, bool]:
    """Cancel a GET after so many steps. Return whether it had ended before, and whether it went on."""
    await client.get("a")  # connected: only the command is canceled
    ended = asyncio.Event()

    async def work() -> None:
        await client.get("a")
        ended.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    for _ in range(steps):
        await asyncio.sleep(0)
    in_time = not ended.is_set()
    task.cancel()
    going_on = asyncio.ensure_future(ended.wait())
    await asyncio.wait({task, going_on}, return_when=asyncio.FIRST_COMPLETED)
    went_on = in_time and ended.is_set()
    for each in (task, going_on):
        each.cancel()
    await asyncio.gather(task, going_on, return_exceptions=True)
    return in_time, went_on


async def check(client: Any) -> None:
    lost = []
    for steps in count():
        in_time, went_on = await canceled_at(client, steps)
        if not in_time:
            break
        if went_on:
            lost.append(steps)
    assert steps > 2
    assert lost == []


async def check_url(url: str, options: PoolOptions | None = None) -> None:
    async with open_pool(url, options or PoolOptions(), name="test-cancellation") as client:
        await check(client)


async def test_a_connection_ended_at_any_step_is_a_connection_error(valkey_url: str) -> None:
    """As redis-py ends idle ones while it hands them out, when Sentinels name another master."""
    async with open_pool(valkey_url, PoolOptions(), name="test-cancellation") as client:
        for steps in count():
            await client.get("a")
            call = asyncio.ensure_future(client.get("a"))
            for _ in range(steps):
                await asyncio.sleep(0)
            if call.done():
                break
            await client.connection_pool.disconnect()
            with suppress(RedisConnectionError):
                assert await call is None
        assert steps > 2


async def test_a_cancellation_is_never_lost(valkey_url: str, tmp_path: Path) -> None:
    await check_url(valkey_url)
    with valkey(tmp_path) as port:
        await check_url(f"redis://127.0.0.1:{port}/0")


async def test_a_cancellation_is_never_lost_by_tls(valkey_url: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with tls_in_front(valkey_url.removeprefix("unix://"), context) as port:
        options = PoolOptions(ca_file=tmp_path / "ca.pem")
        await check_url(f"rediss://localhost:{port}/0", options)


async def test_a_cancellation_is_never_lost_behind_a_sentinel(tmp_path: Path) -> None:
    conf = tmp_path / "sentinel" / "sentinel.conf"
    conf.parent.mkdir()
    with valkey(tmp_path / "master") as master:
        conf.write_text(f"sentinel monitor mine 127.0.0.1 {master} 1\nbind 127.0.0.1\n")
        with valkey(conf.parent, str(conf), "--sentinel") as port:
            url = f"redis+sentinel://127.0.0.1:{port}/mine/0"
            async with open_pool(url, PoolOptions(), name="test-cancellation") as client:
                await check(client)
                other = sibling(client, name="test-sibling")
                try:
                    await check(other)
                finally:
                    await close_client(other)


async def test_a_cancellation_is_never_lost_in_a_cluster(tmp_path: Path) -> None:
    with valkey(tmp_path, "--cluster-enabled", "yes") as port:
        async with open_pool(f"redis://127.0.0.1:{port}", PoolOptions(), name="t") as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")

            async def is_ok() -> bool:
                return bool((await client.cluster("INFO"))["cluster_state"] == "ok")

            await eventually(is_ok, deadline_s=30)
        await check_url(f"redis+cluster://127.0.0.1:{port}")
