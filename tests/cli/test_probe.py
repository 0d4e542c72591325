"""The light way of `letta-workers health`: what it answers, and what it leaves to the command."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from click.testing import CliRunner

from cache.connection.pool import PoolOptions, open_pool
from tests.support.servers import tls_in_front, valkey
from worker.cli.commands import main
from worker.cli.probe import answer
from worker.keys import QueueKeys

pytestmark = pytest.mark.integration

HEARTBEAT = {"worker_id": "w1\x1b[2J", "host": socket.gethostname(), "pid": 7}
ELSEWHERE = {"worker_id": "w2", "host": "another", "pid": 7}
PASSWORD = "pass word@:/#"


async def alive(url: str) -> None:
    """Write the heartbeat of a worker, and the name of one that has ended."""
    keys = QueueKeys()
    async with open_pool(url, PoolOptions(), name="test") as client:
        await client.zadd(keys.workers, {"w1": 1, "w0": 2})
        await client.set(keys.worker("w1"), json.dumps(HEARTBEAT))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without `.env`."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


async def test_it_reports_live_workers_as_text_and_json(
    private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)
    assert answer([]) is None
    await alive(private_valkey_url)

    assert answer([]) == "redis: ok\nworkers: w1\\x1b[2J"
    assert json.loads(answer(["--json"]) or "") == {
        "healthy": True,
        "redis": "ok",
        "host": socket.gethostname(),
        "workers": [HEARTBEAT],
        "elsewhere": 0,
    }
    assert answer(["--help"]) is None


async def test_it_counts_this_machines_workers_unless_told_otherwise(
    private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)
    keys = QueueKeys()
    async with open_pool(private_valkey_url, PoolOptions(), name="test") as client:
        await client.zadd(keys.workers, {"w2": 1})
        await client.set(keys.worker("w2"), json.dumps(ELSEWHERE))

    assert answer([]) is None
    assert answer(["--any"]) == "redis: ok\nworkers: w2"
    command = await asyncio.to_thread(CliRunner().invoke, main, ["health"])
    assert command.exit_code == 1
    assert "elsewhere: 1 (--any counts them)" in command.stdout
    await alive(private_valkey_url)
    assert answer([]) == "redis: ok\nworkers: w1\\x1b[2J\nelsewhere: 1 (--any counts them)"


async def test_it_reads_the_settings_where_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    monkeypatch.setenv("LETTA_SECRETS_DIR", str(secrets))
    with valkey(tmp_path / "server", "--requirepass", PASSWORD) as port:
        await alive(f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/3")
        monkeypatch.setenv("letta_redis_url", f"redis://127.0.0.1:{port}/3")
        assert answer([]) is None  # no password

        (secrets / "letta_redis_password").write_text(PASSWORD + "\n")
        assert answer([])
        monkeypatch.setenv("LETTA_REDIS_PASSWORD", "wrong")
        assert answer([]) is None
        monkeypatch.setenv("LETTA_REDIS_PASSWORD", "")
        monkeypatch.setenv("LETTA_REDIS_USERNAME", "default")
        assert answer([])
        monkeypatch.setenv("letta_redis_url", f"redis://:wrong@127.0.0.1:{port}/3")
        assert answer([]) is None
        monkeypatch.setenv("letta_redis_url", "")
        (secrets / "LETTA_REDIS_URL").write_text(f"redis://127.0.0.1:{port}/3")
        assert answer([])

        (elsewhere / ".env").write_text("LETTA_REDIS_URL=redis://elsewhere/0\n")
        assert answer([]) is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0",
        "redis+sentinel://127.0.0.1:1/mymaster",
        "redis+cluster://127.0.0.1:1",
        "embedded://",
        "unix:///no/such/socket",
        "http://127.0.0.1",
        "redis://127.0.0.1:port/0",
    ],
)
def test_it_leaves_what_it_cannot_confirm_to_the_command(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_REDIS_URL", url)

    assert answer([]) is None


async def test_it_verifies_tls_as_the_command_does(
    private_valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alive(private_valkey_url)
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with tls_in_front(private_valkey_url.removeprefix("unix://"), context) as port:
        monkeypatch.setenv("LETTA_REDIS_URL", f"rediss://localhost:{port}/0")
        assert await asyncio.to_thread(answer, []) is None
        monkeypatch.setenv("LETTA_REDIS_CA_FILE", str(ca_file))
        assert await asyncio.to_thread(answer, [])
        monkeypatch.setenv("LETTA_REDIS_URL", f"rediss://127.0.0.1:{port}/0")
        assert await asyncio.to_thread(answer, []) is None
