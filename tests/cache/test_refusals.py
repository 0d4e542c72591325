"""A server that refuses is one line with its remedy, within seconds, on every redis-py."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from cache.connection.pool import OUTAGE, PoolOptions, open_pool
from cache.connection.protocol import Ended
from cache.connection.readiness import refuse_for_good, wait_until_ready
from cache.connection.refusals import explain, refusal_of
from cache.connection.siblings import url_of
from cache.errors import RedisRefused, RedisUnavailable
from tests.support.refusing import REMEDIES, refusing_servers
from tests.support.servers import raw_server

ROOT = Path(__file__).parents[2]
MOVED = "MOVED 5 127.0.0.1:7"
# An attempt ends after 3 s. Without that end, these take from half a minute to forever.
LIMIT_S = 20

# Runs on the base install: what a client with a health check meets at each URL, and how long it took.
PROBE = """
import asyncio, json, sys, time
from letta_redis.cache.connection.pool import PoolOptions, open_pool
from letta_redis.cache.connection.readiness import wait_until_ready
async def probe(name, url):
    start, waits = time.monotonic(), name in ("loading", "TLS expected")
    async with open_pool(url, PoolOptions(), name="t") as client:
        try:
            await wait_until_ready(client, url, deadline_s=0 if waits else 10)
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}", time.monotonic() - start
async def main():
    urls = json.loads(sys.argv[1])
    print(json.dumps(dict(zip(urls, await asyncio.gather(*map(probe, urls, urls.values()))))))
asyncio.run(main())
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    "python",
    [sys.executable, *(str(ROOT / f".venv/base/{v}/bin/python") for v in ("oldest", "newest"))],
    ids=["checkout", "oldest", "newest"],
)
async def test_every_refusal_names_its_remedy_in_one_line(
    valkey_url: str, tmp_path: Path, python: str
) -> None:
    async with refusing_servers(tmp_path, valkey_url.removeprefix("unix://")) as urls:
        process = await asyncio.create_subprocess_exec(
            python, "-c", PROBE, json.dumps(urls), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(out)
    assert set(found) == set(REMEDIES)
    for name, (text, took_s) in found.items():
        assert REMEDIES[name] in text, name
        assert "\n" not in text
        assert "hunter2" not in text
        assert len(text) < 300
        assert took_s < LIMIT_S, name
        waits = name in {"loading", "TLS expected"}
        assert text.startswith("RedisUnavailable:" if waits else "RedisRefused:"), text


@pytest.mark.integration
async def test_a_server_without_an_answer_is_given_up_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass

    async with raw_server(silent) as port:
        url = f"redis://127.0.0.1:{port}/0"
        async with open_pool(url, PoolOptions(socket_timeout_s=60), name="t") as client:
            start = asyncio.get_running_loop().time()
            with pytest.raises(RedisUnavailable, match="no answer in time"):
                await wait_until_ready(client, url, deadline_s=0)
            assert asyncio.get_running_loop().time() - start < LIMIT_S


@pytest.mark.integration
async def test_a_refusal_for_good_is_not_waited_for(tmp_path: Path, valkey_url: str) -> None:
    async with refusing_servers(tmp_path, valkey_url.removeprefix("unix://")) as urls:
        url = urls["no password"]
        async with open_pool(url, PoolOptions(), name="t") as client, asyncio.timeout(LIMIT_S):
            with pytest.raises(RedisRefused):
                await wait_until_ready(client, url, deadline_s=None)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "remedy", "lasting"),
    [
        ("NOAUTH Authentication required.", "LETTA_REDIS_PASSWORD", True),
        ("READONLY You can't write against a read only replica.", "master", False),
        (
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is 'no'",
            "master",
            False,
        ),
        ("MISCONF Valkey is configured to save RDB snapshots, but it's ...", "disk", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", "maxmemory", False),
        ("MOVED 12182 127.0.0.1:7001", "redis+cluster://", True),
        ("CROSSSLOT Keys in request don't hash to the same slot", "redis+cluster://", True),
        ("DENIED Redis is running in protected mode because ...", "password", True),
        ("max number of clients reached", "maxclients", False),
        ("BUSY Redis is busy running a script.", "SCRIPT KILL", False),
        ("unknown command 'EVALSHA', with args beginning with:", "redis+sentinel://", True),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "redis://", True),
        ("NOPERM No permissions to access a key", "ACL", True),
    ],
)
def test_a_refusal_is_recognized_by_its_text(text: str, remedy: str, lasting: bool) -> None:
    found = refusal_of(OUTAGE[0](text))
    assert found is not None
    assert remedy in found.remedy
    assert found.lasting is lasting
    assert explain(OUTAGE[0](text)) == str(found)


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "Error 111 connecting to queue:6379.", "BUSYGROUP exists"])
def test_any_other_outage_is_its_own_text(text: str) -> None:
    assert refusal_of(OUTAGE[0](text)) is None
    assert explain(OUTAGE[0](text + "\nx")) == (f"{text} x").strip()


@pytest.mark.unit
@pytest.mark.parametrize(
    "url",
    [
        "redis://queue:6380/3", "rediss://queue:6379/0", "unix:///run/valkey.sock?db=2",
        "redis+sentinel://a:26379,b:26379/main/1", "rediss+sentinel://a:26379/main/0",
    ],
)  # fmt: skip
async def test_a_clients_url_is_read_back_without_its_login(url: str) -> None:
    scheme, rest = url.split("://")
    async with open_pool(f"{scheme}://me:hunter2@{rest}", PoolOptions(), name="t") as client:
        assert url_of(client) == url


def test_a_slot_that_moves_is_no_reason_to_give_up_on_a_cluster() -> None:
    """Its clients ask the new owner. Others are told that the server is a cluster's node."""
    refuse_for_good(Ended(MOVED), "redis+cluster://127.0.0.1:1")
    assert explain(Ended(MOVED)) == MOVED
    with pytest.raises(RedisRefused, match=r"use redis\+cluster://"):
        refuse_for_good(ResponseError(MOVED), "redis://127.0.0.1:1")
