"""Every form of a Redis URL, on real servers."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from cache.connection.pool import PoolOptions, open_pool
from cache.connection.readiness import wait_until_ready
from cache.connection.urls import parse_url, redacted
from cache.errors import RedisUnavailable, UnsupportedRedisURL
from tests.support.servers import free_port, tls_in_front, valkey
from tests.support.wait import eventually

pytestmark = pytest.mark.integration

QUICK = PoolOptions(connect_timeout_s=2, socket_timeout_s=2, retries=0)


class OwnClient(Redis):  # type: ignore[misc]
    """Stands in for arq's subclass."""


async def roundtrip(url: str, options: PoolOptions = QUICK, **more: Any) -> Any:
    async with open_pool(url, options, name="test-roundtrip", **more) as client:
        await client.set("roundtrip", "1", ex=60)
        return await client.get("roundtrip")


async def test_a_unix_socket_serves_and_names_its_client(valkey_url: str) -> None:
    async with open_pool(valkey_url, QUICK, name="letta-redis-test") as client:
        assert await client.client_getname() in {"letta-redis-test", b"letta-redis-test"}


async def test_a_database_number_keeps_its_keys_apart(tmp_path: Path) -> None:
    with valkey(tmp_path) as port:
        for form in ("redis://127.0.0.1:{}/3", "redis://127.0.0.1:{}?db=3"):
            assert await roundtrip(form.format(port)) == b"1"
        async with open_pool(f"redis://127.0.0.1:{port}/0", QUICK, name="t") as client:
            assert await client.get("roundtrip") is None


async def test_a_password_with_special_characters_is_used(tmp_path: Path) -> None:
    with valkey(tmp_path, "--requirepass", "p@ss:w/rd") as port:
        assert await roundtrip(f"redis://:p%40ss%3Aw%2Frd@127.0.0.1:{port}/0") == b"1"
        with pytest.raises(RedisConnectionError):
            await roundtrip(f"redis://:wrong@127.0.0.1:{port}/0")


async def test_tls_verifies_authority_and_host_name(valkey_url: str, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    stranger.cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    path = valkey_url.removeprefix("unix://")
    trusting = PoolOptions(retries=0, ca_file=tmp_path / "ca.pem")
    for name, options, works in (
        ("localhost", trusting, True),
        ("elsewhere.example", trusting, False),
        ("localhost", PoolOptions(retries=0, ca_file=tmp_path / "stranger.pem"), False),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        async with tls_in_front(path, context) as port:
            url = f"rediss://localhost:{port}/0"
            if works:
                assert await roundtrip(url, options) == b"1"
            else:
                with pytest.raises(RedisConnectionError, match=r"(?i)certificate"):
                    await roundtrip(url, options)


async def test_sentinel_finds_the_master_for_any_client_class(tmp_path: Path) -> None:
    with valkey(tmp_path / "master") as master:
        sentinel_home = tmp_path / "sentinel"
        sentinel_home.mkdir()
        conf = sentinel_home / "sentinel.conf"
        conf.write_text(f"sentinel monitor mine 127.0.0.1 {master} 1\nbind 127.0.0.1\n")
        with valkey(sentinel_home, str(conf), "--sentinel") as port:
            url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port}/mine/0"
            assert await roundtrip(url) == b"1"
            async with open_pool(url, QUICK, name="t", client_class=OwnClient) as client:
                assert isinstance(client, OwnClient)
                assert await client.get("roundtrip") == b"1"


async def test_a_cluster_serves_the_cache_and_one_tag(tmp_path: Path) -> None:
    with valkey(tmp_path, "--cluster-enabled", "yes") as port:
        async with open_pool(f"redis://127.0.0.1:{port}", QUICK, name="t") as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")

            async def is_ok() -> bool:
                info: dict[str, str] = await client.execute_command("CLUSTER INFO")
                return info["cluster_state"] == "ok"

            await eventually(is_ok)
        url = f"redis+cluster://127.0.0.1:{port}"
        assert await roundtrip(url) == b"1"
        async with open_pool(url, QUICK, name="t", client_class=OwnClient, tag="{t}") as client:
            assert isinstance(client, OwnClient)
            async with client.pipeline(transaction=True) as pipe:
                pipe.set("{t}:a", 1)
                pipe.get("{t}:a")
                assert await pipe.execute() == [True, b"1"]


async def test_an_unreachable_server_is_an_error_without_the_password() -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    async with open_pool(url, QUICK, name="t") as client:
        with pytest.raises(RedisUnavailable, match="LETTA_REDIS_URL") as caught:
            await wait_until_ready(client, url, deadline_s=0)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_late_server_is_waited_for_and_logged_once(tmp_path: Path) -> None:
    import asyncio

    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    async with open_pool(url, QUICK, name="t") as client:
        with structlog.testing.capture_logs() as logs:
            waiting = asyncio.create_task(wait_until_ready(client, url, deadline_s=20))

            async def logged() -> bool:
                return any(line["event"] == "redis.unreachable" for line in logs)

            await eventually(logged)
            with valkey(tmp_path, port=port):
                await waiting
    events = [line["event"] for line in logs]
    assert events == ["redis.unreachable", "redis.reached"]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost", "redis://a:1,b:2/0", "redis://localhost:port/0", "redis://h/zero",
        "redis+sentinel://h:1", "memory://",
    ],
)  # fmt: skip
def test_a_url_of_no_known_form_is_refused(url: str) -> None:
    with pytest.raises(UnsupportedRedisURL):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h/0?ssl_cert_reqs=none", "no options but db"),
        ("rediss://h/0?db=1&ssl_ca_certs=/ca.pem", "set LETTA_REDIS_CA_FILE instead of ssl_ca"),
        ("unix:///s?socket_timeout=5", "LETTA_REDIS_SOCKET_TIMEOUT_S"),
        ("redis+sentinel://h/service?db=1", "no options"),
        ("redis+cluster://h?x", "no options"),
    ],
)
def test_an_option_of_a_url_that_does_nothing_is_refused(url: str, words: str) -> None:
    with pytest.raises(UnsupportedRedisURL, match=words):
        parse_url(url)


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(UnsupportedRedisURL) as caught:
        parse_url("redis://user:hunter2@h:port/0")
    assert "hunter2" not in str(caught.value)
    assert redacted("redis://user:hunter2@h/0") == "redis://user:***@h/0"
