"""rediss+sentinel:// uses TLS and a separate password for the Sentinels too."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from cache.connection.pool import OUTAGE, PoolOptions, close_client, open_pool
from cache.connection.refusals import explain
from cache.connection.siblings import sibling
from cache.opening import pool_options
from settings import load_settings
from tests.support.servers import tls_in_front, valkey

pytestmark = pytest.mark.integration

PASSWORD = "the-sentinels-own"


@asynccontextmanager
async def sentinel_behind_tls(home: Path) -> AsyncIterator[tuple[str, PoolOptions]]:
    """The URL of a Sentinel and master behind TLS, and options that trust both."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(home / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    sockets = home / "m.sock", home / "s.sock"
    with valkey(home / "master", "--unixsocket", str(sockets[0])):
        async with tls_in_front(str(sockets[0]), context) as master:
            conf = home / "sentinel" / "sentinel.conf"
            conf.parent.mkdir()
            # It names the master. It cannot reach it by TLS, but the test ends before it reports that.
            conf.write_text(
                f"sentinel monitor mine 127.0.0.1 {master} 1\n"
                "sentinel down-after-milliseconds mine 600000\n"
                f"bind 127.0.0.1\nunixsocket {sockets[1]}\nrequirepass {PASSWORD}\n"
            )
            with valkey(conf.parent, str(conf), "--sentinel"):
                async with tls_in_front(str(sockets[1]), context) as port:
                    options = PoolOptions(
                        retries=0, ca_file=home / "ca.pem", sentinel_password=PASSWORD
                    )
                    yield f"localhost:{port}/mine/0", options


async def roundtrip(url: str, options: PoolOptions) -> None:
    async with open_pool(url, options, name="t") as client:
        assert await client.set("roundtrip", "1")
        other = sibling(client, name="t2")
        try:
            assert await other.get("roundtrip") == b"1"
        finally:
            await close_client(other)


async def test_sentinels_are_verified_and_get_their_password(tmp_path: Path) -> None:
    stranger = trustme.CA()
    stranger.cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    async with sentinel_behind_tls(tmp_path) as (place, options):
        await roundtrip(f"rediss+sentinel://{place}", options)
        url, by_stranger = f"rediss+sentinel://{place}", tmp_path / "stranger.pem"
        for remedy, chosen, wrong in (
            ("rediss://", f"redis+sentinel://{place}", options),
            ("LETTA_REDIS_CA_FILE", url, replace(options, ca_file=by_stranger)),
            ("LETTA_REDIS_SENTINEL_PASSWORD", url, replace(options, sentinel_password=None)),
            ("LETTA_REDIS_SENTINEL_PASSWORD", url, replace(options, sentinel_password="another")),
        ):
            with pytest.raises(OUTAGE) as refused:
                await roundtrip(chosen, wrong)
            assert remedy in explain(refused.value)


def test_the_sentinels_login_comes_from_the_settings() -> None:
    found = pool_options(load_settings(redis_sentinel_username="u", redis_sentinel_password="p4ss"))
    assert (found.sentinel_username, found.sentinel_password) == ("u", "p4ss")
    assert "p4ss" not in repr(found)
