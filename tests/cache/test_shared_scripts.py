"""Scripts on one shared connection, and what happens when the connection breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ReadOnlyError, ResponseError

from cache.connection.pool import PoolOptions, open_pool
from cache.connection.protocol import Away
from cache.connection.shared_scripts import ScriptRedis
from tests.support.fault_proxy import fault_proxy
from tests.support.servers import free_port, valkey
from tests.support.wait import eventually

pytestmark = pytest.mark.integration

_COUNT = "return redis.call('INCR', KEYS[1])"
_QUICK = PoolOptions(socket_timeout_s=0.5)


@asynccontextmanager
async def _opened(url: str, options: PoolOptions | None = None) -> AsyncIterator[Any]:
    async with open_pool(
        url, options or PoolOptions(), name="scripts", client_class=ScriptRedis
    ) as client:
        yield client


async def _scripts_connection(client: Any) -> str:
    ids: list[str] = [row["id"] for row in await client.client_list() if row["cmd"] == "eval"]
    assert len(ids) == 1
    return ids[0]


async def test_scripts_share_a_connection_beyond_the_pools_limit(
    valkey_url: str, prefix: str
) -> None:
    async with _opened(valkey_url, PoolOptions(max_connections=1)) as client:
        key = f"{prefix}n"
        counts = await asyncio.gather(*(client.eval(_COUNT, 1, key) for _ in range(100)))
        assert counts == list(range(1, 101))
        assert await client.get(key) == b"100"
        names = [row["name"] for row in await client.client_list()]
        assert names.count("scripts") == 2  # the scripts', and a caller's


async def test_a_script_whose_reply_was_lost_is_sent_again(valkey_url: str, prefix: str) -> None:
    async with (
        fault_proxy(valkey_url.removeprefix("unix://")) as proxy,
        _opened(proxy.url) as client,
    ):
        await client.eval(_COUNT, 1, f"{prefix}n")
        proxy.cut_replies(2, marker=b"EVAL")
        assert await client.eval(_COUNT, 1, f"{prefix}n") == 4
        assert proxy.cuts_made == 2


async def test_an_idle_connection_that_fell_silent_is_replaced_once(
    valkey_url: str, prefix: str
) -> None:
    async with (
        fault_proxy(valkey_url.removeprefix("unix://")) as proxy,
        _opened(proxy.url, _QUICK) as client,
    ):
        await client.eval(_COUNT, 1, f"{prefix}n")
        proxy.swallow()
        assert await client.eval(_COUNT, 1, f"{prefix}n") == 2


async def test_a_silent_server_is_an_outage_and_then_works_again(
    valkey_url: str, prefix: str
) -> None:
    async with (
        fault_proxy(valkey_url.removeprefix("unix://")) as proxy,
        _opened(proxy.url, _QUICK) as client,
    ):
        await client.eval(_COUNT, 1, f"{prefix}n")
        proxy.hold()
        with pytest.raises(Away, match=r"silent|not connected|Timeout"):
            await client.eval(_COUNT, 1, f"{prefix}n")
        proxy.release()

        async def works() -> bool:
            try:
                return int(await client.eval(_COUNT, 1, f"{prefix}n")) > 1
            except Away:
                return False

        assert await eventually(works)


async def test_a_refused_connection_is_a_connection_error(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    async with _opened(url, PoolOptions(retries=0)) as client:
        with pytest.raises(Away):
            await client.eval(_COUNT, 1, "n")


async def test_a_server_that_became_a_replica_is_left(tmp_path: Path) -> None:
    with valkey(tmp_path) as port:
        async with _opened(f"redis://127.0.0.1:{port}/0") as client:
            await client.eval(_COUNT, 1, "n")
            before = await _scripts_connection(client)
            await client.execute_command("REPLICAOF", "127.0.0.1", free_port())
            with pytest.raises(ReadOnlyError):
                await client.eval(_COUNT, 1, "n")
            await client.execute_command("REPLICAOF", "NO", "ONE")
            assert await client.eval(_COUNT, 1, "n") == 2
            assert await _scripts_connection(client) != before


async def test_a_refused_script_fails_alone(valkey_url: str, prefix: str) -> None:
    async with _opened(valkey_url) as client:
        bad = "return redis.call('NO-SUCH')"
        calls = [client.eval(text, 1, f"{prefix}n") for text in (_COUNT, bad, _COUNT)]
        first, refused, last = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, last) == (1, 2)
        assert isinstance(refused, ResponseError)


async def test_closing_ends_the_connection(valkey_url: str, client: Any) -> None:
    async with _opened(valkey_url) as shared:
        await shared.eval("return 1", 0)
        assert "scripts" in [row["name"] for row in await client.client_list()]

    async def is_gone() -> bool:
        return "scripts" not in [row["name"] for row in await client.client_list()]

    await eventually(is_gone)
